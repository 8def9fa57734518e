"""From what the loader gives to what an iteration starts from: encoded images and captions, random numbers."""

import argparse
from dataclasses import dataclass

import torch

from discriminator import projection_condition
from distillation.latents import LatentSpace, Window
from distillation.losses import Batch
from distillation.noise import NoiseSettings, draw_decode_window, draw_discriminator_crop, draw_noise
from distillation.student import Condition
from distillation.teacher import TeacherConditions
from training.encoding.embeddings import Embeddings
from training.models.families import Family
from training.options.derived import guiding_prompts


@dataclass
class BatchMaker:
    """Makes a `Batch` of a collated sample list, on `device`.

    Attributes:
        student, teacher: whose encoders turn captions into conditions; one and the same unless the teacher is another
            model.
        embeddings: of images and captions, computed or read from the cache.
        last_timestep: s at which c_img is zeroed, or None to keep it everywhere.
        dtype: of the captions' embeddings, the run's precision.
    """

    args: argparse.Namespace
    student: Family
    teacher: Family
    latents: LatentSpace
    embeddings: Embeddings
    settings: NoiseSettings
    last_timestep: int | None
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def __call__(self, loaded: dict, iteration: int) -> Batch:
        """`loaded` is what `training.data.dataset.collate` returns."""
        args, seed = self.args, self.settings.seed
        x0 = loaded["pixels"].to(self.device, non_blocking=True)
        captions, ids = loaded["captions"], loaded["sample_ids"]
        sizes = {k: loaded[k].to(self.device) for k in ("original_size", "crop_top_left", "target_size")}
        z0_moments = self.embeddings.latents(x0, ids)
        noise = draw_noise(self.settings, loaded["positions"].tolist(), z0_moments[0].shape[1:]).to(self.device)
        c = None
        if args.adversarial_weight > 0:
            known = None if self.last_timestep is None else noise.s != self.last_timestep
            c_text, c_img = self.embeddings.c_text(captions), self.embeddings.c_img(x0, ids)
            c = projection_condition(c_text, c_img, known)
        decode_window = None
        if args.decode_crop_size is not None:
            size = args.decode_crop_size // self.latents.factor
            decode_window = Window.draw(z0_moments[0].shape[2:], size, draw_decode_window(seed, iteration))
        return Batch(
            x0=x0,
            z0_moments=z0_moments,
            condition=self._condition(self.student, captions, sizes),
            teacher_conditions=self._teacher_conditions(captions, sizes),
            c=c,
            noise=noise,
            discriminator_crop=draw_discriminator_crop(seed, iteration),
            decode_window=decode_window,
        )

    def _condition(self, family: Family, captions: list[str], sizes: dict) -> Condition:
        embedded = self.embeddings.captions(family, captions)
        return family.condition({name: value.to(self.dtype) for name, value in embedded.items()}, sizes)

    def _teacher_conditions(self, captions: list[str], sizes: dict) -> TeacherConditions | None:
        if self.args.distillation_weight == 0:
            return None
        prompts = [captions, *([prompt] * len(captions) for prompt in guiding_prompts(self.args))]
        return TeacherConditions(*(self._condition(self.teacher, each, sizes) for each in prompts))
