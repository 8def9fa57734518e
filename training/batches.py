"""From what the loader gives to what an iteration starts from: encodes captions and draws the random numbers."""

import argparse
from dataclasses import dataclass

import torch

from discriminator import ImageCondition, TextCondition, projection_condition
from distillation.teacher import NFSD_NEGATIVE_PROMPT, TeacherConditions

from .draws import DrawSettings, draw
from .setup import Family, guidance_scale
from .step import Batch


@dataclass
class BatchMaker:
    """Makes a `Batch` of a collated sample list, on `device`.

    Attributes:
        family: encodes captions for student and teacher.
        text, image: encoders of c_text and c_img, or None where that condition is off.
        last_timestep: s at which c_img is zeroed, or None to keep it everywhere.
    """

    args: argparse.Namespace
    family: Family
    settings: DrawSettings
    text: TextCondition | None
    image: ImageCondition | None
    last_timestep: int | None
    device: torch.device

    @torch.no_grad()
    def __call__(self, loaded: dict, crop: tuple[float, float, float]) -> Batch:
        """`loaded` is what `training.data.collate` returns."""
        x0 = loaded["pixels"].to(self.device, non_blocking=True)
        captions = loaded["captions"]
        sizes = {k: loaded[k].to(self.device) for k in ("original_size", "crop_top_left", "target_size")}
        factor = 2 ** (len(self.family.vae.config.block_out_channels) - 1)
        latent_shape = (self.family.vae.config.latent_channels, x0.shape[2] // factor, x0.shape[3] // factor)
        draws = draw(self.settings, loaded["positions"].tolist(), latent_shape).to(self.device)
        condition = self.family.condition(captions, sizes)
        c = None
        if self.args.adversarial_weight > 0:
            known = None if self.last_timestep is None else draws.s != self.last_timestep
            c = projection_condition(
                self.text(captions) if self.text is not None else None,
                self.image(x0) if self.image is not None else None,
                known,
            )
        return Batch(x0, condition, self._teacher_conditions(condition, len(captions), sizes), c, draws, crop)

    def _teacher_conditions(self, caption, count: int, sizes: dict) -> TeacherConditions | None:
        """The prompts this run's target needs, no others: each costs the teacher a forward."""
        args = self.args
        if args.distillation_weight == 0:
            return None
        if args.distillation_weighting == "nfsd":
            negative = NFSD_NEGATIVE_PROMPT if args.negative_prompt is None else args.negative_prompt
            empty, negative = (self.family.condition([prompt] * count, sizes) for prompt in ("", negative))
            return TeacherConditions(caption, empty, negative)
        if guidance_scale(args) == 1.0:
            return TeacherConditions(caption)
        return TeacherConditions(caption, self.family.condition([args.negative_prompt or ""] * count, sizes))
