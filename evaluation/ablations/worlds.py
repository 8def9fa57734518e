"""The tiny world and real models for the ablations: their networks, flags and measurements."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from evaluation.ablations.tables import AblationRow
from evaluation.errors import EvaluationError
from evaluation.runs.run import Run
from evaluation.tiny.judge import TinyJudge, check_tiny_dir
from evaluation.tiny.systems import System
from pipelines import ADDPipeline

Launch = Callable[[list[str]], None]  # runs a command; raises EvaluationError if it fails
Figures = dict[str, float]


class World(Protocol):
    """Interface of both worlds.

    Attributes:
        networks: paths or Hub ids of the networks, by their names in the tables.
        absent: reasons for missing networks, by their names in the tables.
        headings: headings of the figures by key: `distance` (lower is better), `agreement` (higher) and others.
        protocol: description of the measurement.
    """

    headings: ClassVar[dict[str, str]]
    networks: dict[str, str]
    absent: dict[str, str]
    protocol: str

    def flags(self) -> list[str]:
        """Flags of the training script for models and data; those of a row override them."""
        ...

    def preparations(self, rows: list[AblationRow]) -> list[list[str]]:
        """Commands to run before these rows can be trained; they keep the results of an earlier run."""
        ...

    def measure_student(self, student: Path, steps: int, launch: Launch) -> Figures:
        """Generate images with a published student in `steps` steps, and measure them."""
        ...


def missing_for(world: World, row: AblationRow) -> str | None:
    """The reason why a row cannot be run in `world`; None if it can be run."""
    for name, reason in world.absent.items():
        if f"{{{name}}}" in row.flags:
            return reason
    return None


@dataclass
class TinyWorld:
    """The tiny world, measured with held-out captions and its evaluator."""

    tiny_dir: Path
    tiny_sdxl_dir: Path | None
    stand_ins: Path
    num_samples: int = 500

    headings: ClassVar[dict[str, str]] = {
        "distance": "FD ↓", "agreement": "agreement ↑", "diversity": "diversity",
    }  # fmt: skip

    def __post_init__(self):
        """Check the folders.

        Raises:
            EvaluationError: a folder is not a tiny world.
        """
        self.judge = TinyJudge(self.tiny_dir, self.num_samples)
        self.protocol = self.judge.protocol
        self.networks = {
            "teacher": str(self.tiny_dir / "teacher"),
            "clip_l": str(self.stand_ins / "clip"),
            "untrained": str(self.stand_ins / "untrained"),
        }
        self.absent = {
            "dinov1_s": "no network of this objective",
            "dinov2_l": "no larger network",
            "teacher_xl": "no --tiny_sdxl_dir",
        }
        if self.tiny_sdxl_dir is not None:
            check_tiny_dir(self.tiny_sdxl_dir, "--tiny_sdxl_dir")
            self.networks["teacher_xl"] = str(self.tiny_sdxl_dir / "teacher")
            del self.absent["teacher_xl"]

    def flags(self) -> list[str]:
        """See `World`."""
        tiny = self.tiny_dir
        return [
            "--pretrained_teacher_model", str(tiny / "teacher"), "--train_data_dir", str(tiny / "data" / "train"),
            "--resolution", "32", "--discriminator_feature_model", str(tiny / "feature_network"),
            "--discriminator_text_model", str(tiny / "clip"),
            "--discriminator_image_model", str(tiny / "feature_network"),
        ]  # fmt: skip

    def preparations(self, rows: list[AblationRow]) -> list[list[str]]:
        """The command that builds the stand-ins, if a row needs them."""
        if not any(place in row.flags for row in rows for place in ("{clip_l}", "{untrained}")):
            return []
        words = ["--tiny_dir", str(self.tiny_dir), "--output_dir", str(self.stand_ins)]
        return [["python", "-m", "examples.tiny.stand_ins", *words]]

    def measure_student(self, student: Path, steps: int, launch: Launch) -> Figures:
        """See `World`."""
        row = self.judge.measure_system(ADDPipeline.from_pretrained(student), System("student", steps, 0.0))
        assert row.diversity is not None  # only real images may have none
        return {"distance": row.fd, "agreement": row.alignment, "diversity": row.diversity}


@dataclass
class RealWorld:
    """Real models, measured by `python -m evaluation`. The recipe names the data set.

    Attributes:
        base, base_xl: Hub id or folder of student and teacher, and of the larger model in Table 1e.
        prompts: file with captions, such as COCO's captions_val2017.json.
        reference: folder of real images.
        evaluator: folder of the tiny world's evaluator, to use instead of Inception and CLIP.
    """

    base: str
    base_xl: str | None
    prompts: Path | None
    reference: Path | None
    num_prompts: int = 5000
    evaluator: str | None = None

    headings: ClassVar[dict[str, str]] = {"distance": "FID ↓", "agreement": "CLIP score ↑"}

    def __post_init__(self):
        """Check the files for the measurement.

        Raises:
            EvaluationError: the prompts or the reference images are missing.
        """
        for flag in ("prompts", "reference"):
            value = getattr(self, flag)
            if value is None or not value.exists():
                raise EvaluationError(f"--{flag} {value}: --base needs an existing path, e.g. that of COCO 2017 val.")
        judge = self.evaluator or "Inception-v3 and CLIP ViT-g-14"
        self.protocol = f"{self.num_prompts} prompts of {self.prompts}, against {self.reference}, by {judge}"
        self.networks = {
            "teacher": self.base,
            "dinov1_s": "facebook/dino-vits16",
            "dinov2_l": "facebook/dinov2-large",
            "clip_l": "openai/clip-vit-large-patch14",
        }
        self.absent = {"untrained": "a control for the tiny world"}
        if self.base_xl is None:
            self.absent["teacher_xl"] = "no --base_xl"
        else:
            self.networks["teacher_xl"] = self.base_xl

    def flags(self) -> list[str]:
        """See `World`; the discriminator's networks are the defaults of the training script, as in the paper."""
        return ["--pretrained_teacher_model", self.base]

    def preparations(self, rows: list[AblationRow]) -> list[list[str]]:
        """See `World`; there are none, because all networks are on the Hub."""
        return []

    def measure_student(self, student: Path, steps: int, launch: Launch) -> Figures:
        """See `World`. The images are kept beside the student, so that other metrics can be computed later."""
        run = student.parent / f"images-{steps}"
        launch([
            "python", "-m", "evaluation", "generate", "--model", str(student), "--output_dir", str(run), "--prompts",
            str(self.prompts), "--num_prompts", str(self.num_prompts), "--num_inference_steps", str(steps),
            "--guidance_scale", "0",
        ])  # fmt: skip
        judge = ["--evaluator", self.evaluator] if self.evaluator else []
        launch([
            "python", "-m", "evaluation", "measure", str(run), "--reference", str(self.reference), "--metrics", "fid",
            "clip_score", *judge,
        ])  # fmt: skip
        metrics = Run.open(run).read("metrics.json")
        assert metrics is not None  # `measure` has written it
        figures = metrics["figures"]
        keys = {"distance": ("fid", "fd_evaluator"), "agreement": ("clip_score", "alignment")}
        return {name: next(figures[key]["value"] for key in found if key in figures) for name, found in keys.items()}
