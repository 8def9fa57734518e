"""Table 1 of the paper as data: the flags of each row, and the paper's figures.

A value in braces is the name of a network of the world: `{teacher_xl}` is SDXL, or its tiny equivalent.
"""

from dataclasses import dataclass

# The default of the ablations (grey in the paper) is the recipe with these flags.
COMMON = ("--distillation_weighting", "exponential", "--teacher_steps", "1")
DEFAULT = "default"
SAMPLING_STEPS = (1, 2, 4)


@dataclass(frozen=True)
class AblationRow:
    """One row of Table 1, or of the additional table.

    Attributes:
        label: label of the row in the table.
        run: folder of the row's runs; the same training in several tables has one folder.
        flags: flags of the training script, which override those of the recipe.
        fid, clip_score: figures of the paper, on 5,000 images; None for a row that is not in the paper.
        script: training script.
        without: flags of the recipe to remove.
        sampling_steps: numbers of sampling steps to measure the students with; only 1 in the paper.
    """

    label: str
    run: str
    flags: tuple[str, ...]
    fid: float | None
    clip_score: float | None
    script: str = "train_add.py"
    without: tuple[str, ...] = ()
    sampling_steps: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class AblationTable:
    """One of the six parts of Table 1, or the additional table: its title and its rows."""

    title: str
    rows: tuple[AblationRow, ...]


def _default(label: str) -> AblationRow:
    return AblationRow(label, DEFAULT, (), 20.6, 0.319, sampling_steps=SAMPLING_STEPS)


def _feature_network(label: str, run: str, name: str, fid: float | None, clip_score: float | None) -> AblationRow:
    return AblationRow(label, run, ("--discriminator_feature_model", f"{{{name}}}"), fid, clip_score)


def _teacher(student: str, teacher: str, fid: float, clip_score: float) -> AblationRow:
    """A row of Table 1e. All rows distil in pixels, because two latent spaces can only be compared in pixels."""
    networks = {"sd": "{teacher}", "sdxl": "{teacher_xl}"}
    flags = ("--pretrained_teacher_model", networks[teacher], "--distillation_space", "pixel")
    if student != teacher:
        flags += ("--pretrained_student_model", networks[student])
    names = {"sd": "SD2.1", "sdxl": "SDXL"}
    script = {"sd": "train_add.py", "sdxl": "train_add_sdxl.py"}[student]
    label = f"{names[student]} from {names[teacher]}"
    return AblationRow(label, f"teacher-{student}-of-{teacher}", flags, fid, clip_score, script)


def _ours(label: str, run: str, *flags: str, without: tuple[str, ...] = ()) -> AblationRow:
    return AblationRow(label, run, flags, None, None, without=without, sampling_steps=SAMPLING_STEPS)


NO_TEXT, NO_IMAGE = ("--discriminator_text_model", "none"), ("--discriminator_image_model", "none")

TABLES = {
    "a": AblationTable(
        "Discriminator feature networks",
        (
            _feature_network("ViT-S, DINOv1", "features-dinov1-s", "dinov1_s", 21.5, 0.312),
            _default("ViT-S, DINOv2"),
            _feature_network("ViT-L, DINOv2", "features-dinov2-l", "dinov2_l", 24.0, 0.302),
            _feature_network("ViT-L, CLIP", "features-clip-l", "clip_l", 23.3, 0.308),
            _feature_network("untrained (not in the paper)", "features-untrained", "untrained", None, None),
        ),
    ),
    "b": AblationTable(
        "Discriminator conditioning",
        (
            AblationRow("none", "condition-none", NO_TEXT + NO_IMAGE, 21.2, 0.302),
            AblationRow("c_text", "condition-text", NO_IMAGE, 21.2, 0.307),
            AblationRow("c_img", "condition-image", NO_TEXT, 21.1, 0.316),
            _default("c_text, c_img"),
        ),
    ),
    "c": AblationTable(
        "Student pretraining",
        (AblationRow("random", "student-random", ("--student_init", "random"), 293.6, 0.065), _default("pretrained")),
    ),
    "d": AblationTable(
        "Loss terms",
        (
            AblationRow(
                "adv", "loss-adversarial", ("--distillation_weight", "0"), 20.8, 0.315, sampling_steps=SAMPLING_STEPS
            ),
            AblationRow(
                "distill",
                "loss-distillation",
                ("--adversarial_weight", "0"),
                315.6,
                0.076,
                sampling_steps=SAMPLING_STEPS,
            ),
            _default("adv + distill, exp"),
            AblationRow("adv + distill, sds", "loss-sds", ("--distillation_weighting", "sds"), 22.3, 0.325),
            AblationRow("adv + distill, nfsd", "loss-nfsd", ("--distillation_weighting", "nfsd"), 21.8, 0.327),
        ),
    ),
    "e": AblationTable(
        "Teacher type",
        (
            _teacher("sd", "sd", 20.6, 0.319),
            _teacher("sd", "sdxl", 21.3, 0.321),
            _teacher("sdxl", "sd", 29.3, 0.314),
            _teacher("sdxl", "sdxl", 28.41, 0.325),
        ),
    ),
    "f": AblationTable(
        "Teacher steps",
        (
            _default("1"),
            AblationRow("2", "teacher-steps-2", ("--teacher_steps", "2"), 20.8, 0.321),
            AblationRow("4", "teacher-steps-4", ("--teacher_steps", "4"), 20.3, 0.317),
        ),
    ),
    "ours": AblationTable(
        "Not in the paper: what the demo's recipe does otherwise, taken back one by one",
        (
            _default("the recipe"),
            _ours("real images as they are", "ours-real-as-they-are", without=("--reconstruct_real",)),
            _ours("virtual groups of one kind", "ours-virtual-batch", "--discriminator_norm", "virtual_batch"),
            _ours("DiffAugment", "ours-diffaugment", without=("--no_diffaugment",)),
            _ours(
                "student timesteps drawn evenly", "ours-even-timesteps", without=("--student_timestep_probabilities",)
            ),
        ),
    ),
}
