"""Makes the batch of an iteration from loaded samples: encoded images and captions, and random numbers."""

from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from discriminator import projection_condition
from distillation.latents import LatentSpace, Window
from distillation.losses import Batch
from distillation.noise import NoiseSettings, draw_decode_window, draw_discriminator_crop, draw_noise
from distillation.student import Condition
from distillation.teacher import TeacherConditions
from training.encoding.embeddings import Embeddings
from training.models.families import Family
from training.options.derived import frozen_dtype, guiding_prompts, needs_teacher, noise_settings
from training.options.options import Options


@dataclass
class BatchMaker:
    """Makes a `Batch` from collated samples, on `device`.

    Attributes:
        student, teacher: model families whose encoders turn captions into conditions; the same object unless the
            teacher is another model.
        embeddings: source of the embeddings of images and captions, computed or read from the cache.
        last_timestep: student timestep s at which c_img is set to zero, or None to keep it everywhere.
        dtype: dtype of the caption embeddings, the precision of the run.
        guiding: embeddings `(1, ...)` of each prompt that guides the teacher.
    """

    options: Options
    student: Family
    teacher: Family
    latents: LatentSpace
    embeddings: Embeddings
    settings: NoiseSettings
    last_timestep: int | None
    device: torch.device
    dtype: torch.dtype
    guiding: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False)

    @torch.no_grad()
    def __call__(self, loaded: dict, iteration: int) -> Batch:
        """Make the batch of `iteration` from `loaded`, the result of `training.data.dataset.collate`."""
        options, seed = self.options, self.settings.seed
        x0 = loaded["pixels"].to(self.device, non_blocking=True)
        captions, ids = loaded["captions"], loaded["sample_ids"]
        sizes = {k: loaded[k].to(self.device) for k in ("original_size", "crop_top_left", "target_size")}
        z0_moments = self.embeddings.latents(x0, ids)
        _, channels, height, width = z0_moments[0].shape
        noise = draw_noise(self.settings, loaded["positions"].tolist(), (channels, height, width)).to(self.device)
        c = None
        if options.method.adversarial_weight > 0:
            known = None if self.last_timestep is None else noise.s != self.last_timestep
            c_text, c_img = self.embeddings.c_text(captions), self.embeddings.c_img(x0, ids)
            c = projection_condition(c_text, c_img, known)
        decode_window = None
        if options.hardware.decode_crop_size is not None:
            size = options.hardware.decode_crop_size // self.latents.factor
            decode_window = Window.draw((height, width), size, draw_decode_window(seed, iteration))
        condition = self._condition(self.student, captions, sizes)
        return Batch(
            x0=x0,
            z0_moments=z0_moments,
            condition=condition,
            teacher_conditions=self._teacher_conditions(condition, captions, sizes),
            c=c,
            noise=noise,
            discriminator_crop=draw_discriminator_crop(seed, iteration),
            decode_window=decode_window,
        )

    def _condition(self, family: Family, captions: list[str], sizes: dict) -> Condition:
        return family.condition(self._in_dtype(self.embeddings.captions(family, captions)), sizes)

    def _in_dtype(self, embedded: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.dtype) for name, value in embedded.items()}

    def _teacher_conditions(self, student: Condition, captions: list[str], sizes: dict) -> TeacherConditions | None:
        """The teacher's conditions. `student` is the student's condition, which a teacher from the same repo shares."""
        if not needs_teacher(self.options):
            return None
        same = self.teacher is self.student
        caption = student if same else self._condition(self.teacher, captions, sizes)
        guiding = (self._guiding_condition(prompt, sizes) for prompt in guiding_prompts(self.options))
        return TeacherConditions(caption, *guiding)

    def _guiding_condition(self, prompt: str, sizes: dict) -> Condition:
        """The teacher's condition for one prompt, for every sample. Each prompt is encoded once per run."""
        if prompt not in self.guiding:
            self.guiding[prompt] = self._in_dtype(self.embeddings.captions(self.teacher, [prompt]))
        count = len(sizes["original_size"])
        embedded = {name: value.expand(count, *value.shape[1:]) for name, value in self.guiding[prompt].items()}
        return self.teacher.condition(embedded, sizes)


def make_batch_maker(
    options: Options,
    student: Family,
    teacher: Family,
    latents: LatentSpace,
    embeddings: Embeddings,
    seed: int,
    accelerator: Accelerator,
) -> BatchMaker:
    """Make the `BatchMaker` of a run."""
    keeps_image = options.discriminator.condition_image_at_last_timestep
    return BatchMaker(
        options,
        student,
        teacher,
        latents,
        embeddings,
        noise_settings(options, seed, accelerator.num_processes, teacher.scheduler.config.num_train_timesteps),
        None if keeps_image else options.method.student_timesteps[-1],
        accelerator.device,
        frozen_dtype(accelerator),
    )
