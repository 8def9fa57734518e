"""Sample grids during training: the student in 1, 2 and 4 steps below the teacher, always with the same noise."""

import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from PIL import Image, ImageDraw, ImageFont

from training.models.calling import call_pipeline
from training.models.lora import adapter_disabled
from training.options.derived import make_student_scheduler
from training.run.run import Run
from training.sharding.networks import is_sharded, reshard

logger = logging.getLogger(__name__)

VALIDATION_STEPS = (1, 2, 4)
TEACHER_STEPS, TEACHER_GUIDANCE = 25, 7.5
CELL = 128  # pixels; smaller samples are enlarged by an integer factor
GAP, FONT_SIZE = 4, 11


@contextmanager
def averaged(student: UNet2DConditionModel, ema: EMAModel | None) -> Iterator[UNet2DConditionModel]:
    """`student` in eval mode with the weights of its average `ema`, if there is one; restored afterwards.

    A sharded student is to be averaged and used by all processes together.
    """
    reshard(student)
    training, trainable = student.training, [p for p in student.parameters() if p.requires_grad]
    student.eval()
    if ema is not None:
        ema.foreach = not is_sharded(student)  # torch does not copy lists of sharded tensors
        ema.store(trainable)
        ema.copy_to(trainable)
    try:
        yield student
    finally:
        reshard(student)
        if ema is not None:
            ema.restore(trainable)
            ema.foreach = True
        student.train(training)


class Validator:
    """Generates the sample grids of a run. The teacher's row is generated once.

    Args:
        run: the run. Without `--validation_prompts`, no grids are generated.
    """

    def __init__(self, run: Run):
        self.run = run
        self.prompts, self.size = run.options.validation.validation_prompts or (), run.options.data.resolution
        self.teacher_rows: dict[str, list[Image.Image]] | None = None
        if len(self.prompts) > 1 and not any(" " in prompt for prompt in self.prompts):
            logger.warning(
                "--validation_prompts got %d prompts of one word each: %s. A prompt of several words needs quotation "
                "marks", len(self.prompts), ", ".join(self.prompts),
            )  # fmt: skip

    def validate(self) -> None:
        """Write a grid for this iteration to `validation/step-N.png` in `--output_dir` and to the trackers."""
        run = self.run
        # All processes draw with a sharded student, which none of them could run alone; the main one keeps the images.
        if self.prompts and (run.accelerator.is_main_process or is_sharded(run.players.student)):
            device, on_cpu = run.accelerator.device, run.options.hardware.cache_dir_latents is not None
            for family in {run.family, run.teacher_family}:
                family.move_text_encoders(device)
            if self.teacher_rows is None:
                self.teacher_rows = self._draw_teacher()
            with averaged(run.players.student, run.players.ema) as student:
                pipeline = run.family.pipeline(student, make_student_scheduler(run.options, run.family.scheduler))
                rows = {
                    f"{steps} step{'s' * (steps > 1)}": self._draw(pipeline, steps, 0.0) for steps in VALIDATION_STEPS
                }
            if run.accelerator.is_main_process:
                path = save_grid(run, make_grid(self.teacher_rows | rows, self.prompts))
                logger.info("Samples at iteration %d: %s", run.state.step, path)
            for family in {run.family, run.teacher_family} if on_cpu else ():
                family.move_text_encoders(torch.device("cpu"))
        run.accelerator.wait_for_everyone()

    def _draw_teacher(self) -> dict[str, list[Image.Image]]:
        """The teacher's images by the label of their row; empty without a teacher."""
        run, teacher = self.run, self.run.networks.teacher
        if teacher is None:
            return {}
        pipeline = run.teacher_family.stock_pipeline(teacher, run.teacher_family.sampling_scheduler())
        is_shared = teacher is run.players.student
        with adapter_disabled(teacher) if is_shared else nullcontext():
            return {f"teacher, {TEACHER_STEPS} steps": self._draw(pipeline, TEACHER_STEPS, TEACHER_GUIDANCE)}

    @torch.no_grad()
    def _draw(self, pipeline: DiffusionPipeline, steps: int, guidance_scale: float) -> list[Image.Image]:
        """Generate one image per prompt. Prompt i always starts from the noise of seed + i."""
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(self.run.state.seed + i) for i in range(len(self.prompts))]
        with self.run.accelerator.autocast():
            return call_pipeline(
                pipeline, list(self.prompts), num_inference_steps=steps, guidance_scale=guidance_scale,
                generator=generators, height=self.size, width=self.size,
            ).images  # fmt: skip


def make_grid(rows: Mapping[str, Sequence[Image.Image]], prompts: Sequence[str]) -> Image.Image:
    """Make a labelled grid with one row of images per label and one column per prompt.

    Args:
        rows: images by the label that is written to their left; one image per prompt, all of the same size.
        prompts: prompts that are written above the columns, wrapped to their width.
    """
    first = next(iter(rows.values()))[0]
    scale = max(1, -(-CELL // first.width))
    width, height = first.width * scale, first.height * scale
    font = ImageFont.load_default(FONT_SIZE)
    letter = font.getlength("n")
    titles = ["\n".join(textwrap.wrap(prompt, max(8, int(width / letter)))) for prompt in prompts]
    left = int(max(font.getlength(label) for label in rows)) + 2 * GAP
    top = max(title.count("\n") + 1 for title in titles) * (FONT_SIZE + 4) + 2 * GAP
    size = (left + len(prompts) * (width + GAP), top + len(rows) * (height + GAP))
    grid = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(grid)
    for column, title in enumerate(titles):
        pen.multiline_text((left + column * (width + GAP), GAP), title, fill="black", font=font)
    for row, (label, images) in enumerate(rows.items()):
        y = top + row * (height + GAP)
        pen.text((GAP, y + height / 2), label, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            cell = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            grid.paste(cell, (left + column * (width + GAP), y))
    return grid


def save_grid(run: Run, grid: Image.Image) -> Path:
    """Write a grid to `validation/step-N.png` in `--output_dir` and to the trackers. Returns the path of the file."""
    path = Path(run.options.output.output_dir, "validation", f"step-{run.state.step}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
    for tracker in run.accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        if hasattr(tracker, "log_images"):
            tracker.log_images({"validation": np.asarray(grid)[None]}, step=run.state.step, **layout)
    return path
