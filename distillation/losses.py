"""The losses of one iteration of ADD, with the paper's symbols. Backward passes and updates are in the training loop.

Shapes: B samples, images `(B, 3, H, W)` in [-1, 1], latents `(B, 4, H/8, W/8)`, features of K taps `(B, C, N)`.
If only a `decode_window` of each image is decoded, images are `(B, 3, P, P)` with P its side in pixels; otherwise P
means H and W.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from discriminator import Discriminator
from distillation.diagnostics import accuracy_by_timestep, gradient_norms
from distillation.latents import LatentSpace, Window
from distillation.noise import SampleNoise
from distillation.objectives import (
    distillation_loss,
    distillation_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    r1_penalties,
)
from distillation.schedule import NoiseSchedule
from distillation.student import Condition, diffuse_student, student_sample
from distillation.teacher import Teacher, TeacherConditions


@dataclass(frozen=True)
class Batch:
    """The input of one iteration, on the device.

    Attributes:
        x0: `(B, 3, H, W)` real images in [-1, 1].
        z0_moments: mean and standard deviation `(B, 4, H/8, W/8)` of their latents.
        condition: keyword arguments of the student's UNet for the captions.
        teacher_conditions: conditions of the teacher for the captions; None without distillation.
        c: `(B, D)` condition of the discriminator, or None.
        noise: all random numbers of these samples.
        discriminator_crop: three numbers in [0, 1) for the discriminator's crop, shared by the whole global batch.
        decode_window: window of the images that is decoded for the losses, shared by the whole global batch; None if
            whole images are decoded.
    """

    x0: Tensor
    z0_moments: tuple[Tensor, Tensor]
    condition: Condition
    teacher_conditions: TeacherConditions | None
    c: Tensor | None
    noise: SampleNoise
    discriminator_crop: tuple[float, float, float]
    decode_window: Window | None = None


@dataclass(frozen=True)
class StudentSample:
    """The student's sample x^_theta, and the discriminator's features of it and of x0.

    Attributes:
        z: latents.
        x: pixels `(B, 3, P, P)`; None if no loss needs them.
        fake: features F_k of the pixels, with their graph; None without a discriminator.
        real: features F_k of the real images, without gradients; None without a discriminator.
    """

    z: Tensor
    x: Tensor | None
    fake: tuple[Tensor, ...] | None
    real: tuple[Tensor, ...] | None


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Context manager that puts `module` in eval mode without parameter gradients.

    The student's step must not change the discriminator, including the power iteration of its spectral norm.
    """
    training, trainable = module.training, [p for p in module.parameters() if p.requires_grad]
    module.eval().requires_grad_(False)
    try:
        yield module
    finally:
        module.train(training)
        for p in trainable:
            p.requires_grad_(True)


@dataclass
class Losses:
    """The losses of paper 3.1 to 3.3 for a batch.

    Attributes:
        student: trainable UNet (wrapped by accelerate).
        schedule: noise schedule of the student, see `distillation.student`.
        latents: latent space of the student; it decodes once per iteration.
        teacher: teacher that computes x^_psi, or None for adversarial training only.
        teacher_latents: latent space of the teacher if it differs from the student's (Table 1e), else None.
        discriminator: frozen F with its heads, or None for distillation only.
        heads: trainable heads of `discriminator` (wrapped by accelerate), or None.
        reconstruct_real: whether the discriminator's real images are decode(z0) instead of x0.
        student_timesteps: T_student, for the discriminator's accuracy at each timestep; empty to omit these figures.
        autocast: makes the context manager for mixed precision.
    """

    student: nn.Module
    schedule: NoiseSchedule
    latents: LatentSpace
    teacher: Teacher | None
    teacher_latents: LatentSpace | None
    discriminator: Discriminator | None
    heads: nn.Module | None
    adversarial_weight: float = 1.0
    distillation_weight: float = 2.5
    distillation_weighting: str = "exponential"
    distillation_space: str = "pixel"
    r1_gamma: float = 1e-5
    reconstruct_real: bool = False
    student_timesteps: Sequence[int] = ()
    autocast: Callable[[], AbstractContextManager] = nullcontext

    def sample(self, batch: Batch) -> StudentSample:
        """Compute x^_theta(x_s, s) with one forward pass of the student and one decoding, shared by both steps."""
        noise, (mean, std) = batch.noise, batch.z0_moments
        z0 = mean + std * noise.eps_posterior
        x_s = diffuse_student(self.schedule, z0, noise.eps, noise.s)
        with self.autocast():
            z = student_sample(self.student, self.schedule, x_s, noise.s, batch.condition)
        needs_pixels = self.discriminator is not None or (
            self.teacher is not None and self.distillation_space == "pixel"
        )
        x = self.latents.decode(z, batch.decode_window) if needs_pixels else None
        if self.discriminator is None:
            return StudentSample(z, x, None, None)
        with torch.no_grad():
            real = self.features(self.real_images(batch, z0), noise.augment_real, batch)
        return StudentSample(z, x, self.features(x, noise.augment_fake, batch), real)

    def real_images(self, batch: Batch, z0: Tensor) -> Tensor:
        """The discriminator's real images `(B, 3, P, P)`: x0, or with `reconstruct_real` the decoded latents `z0`.

        The decoder causes artifacts in the student's samples that the student cannot remove. If they are easy to
        detect, the discriminator learns little else; if the real images are decoded too, it has to learn the content.
        """
        if self.reconstruct_real:
            return self.latents.decode(z0, batch.decode_window)
        return batch.x0 if batch.decode_window is None else batch.decode_window.of_pixels(batch.x0, self.latents.factor)

    def features(self, images: Tensor, augment: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Features F_k(images) at K taps, each `(B, C, N)` float32."""
        with self.autocast():
            return tuple(f.float() for f in self.discriminator.features(images, augment, batch.discriminator_crop))

    def discriminator_losses(self, batch: Batch, sample: StudentSample) -> dict[str, Tensor]:
        """Eq. 3: hinge loss on real images and detached samples, plus gamma R1. `total` is the loss to minimize."""
        # Leaf tensors, so that the gradient of R1 ends at the inputs of the heads and F needs no double backward.
        real = tuple(f.detach().requires_grad_(self.r1_gamma > 0) for f in sample.real)
        fake = tuple(f.detach() for f in sample.fake)
        logits_real, logits_fake = self.discriminator.logits(self.heads, real, fake, batch.c)
        hinge = hinge_discriminator_loss(logits_real, logits_fake)
        r1 = self.r1_gamma * (r1_penalties(logits_real, real) if self.r1_gamma > 0 else hinge.new_zeros(len(real)))
        right = accuracy_by_timestep(logits_fake, False, batch.noise.s, self.student_timesteps)
        return {
            "total": hinge + r1.sum(),
            "loss/discriminator": hinge,
            "loss/r1": r1.sum(),
            **{f"discriminator/r1_tap_{k}": value for k, value in enumerate(r1)},
            **{f"discriminator/accuracy_fake_s{s}": value for s, value in right.items()},
            "discriminator/accuracy_real": (logits_real > 0).float().mean(),
            "discriminator/accuracy_fake": (logits_fake < 0).float().mean(),
            "discriminator/logits_real": logits_real.mean(),
            "discriminator/logits_fake": logits_fake.mean(),
        }

    def student_losses(self, batch: Batch, sample: StudentSample) -> dict[str, Tensor]:
        """Eq. 1: L_adv^G + lambda L_distill. `total` is the loss to minimize."""
        total, losses = sample.z.new_zeros(()), {}
        if self.discriminator is not None:
            with frozen(self.discriminator.heads) as heads:
                logits = self.discriminator.logits_of_fake(heads, sample.real, sample.fake, batch.c)
                losses["loss/adversarial"] = hinge_generator_loss(logits)
            total = total + self.adversarial_weight * losses["loss/adversarial"]
        if self.teacher is not None:
            losses["loss/distillation"] = self.distillation(batch, sample)
            total = total + self.distillation_weight * losses["loss/distillation"]
        return {"total": total, "loss/student": total, **losses}

    def gradient_norms(
        self, sample: StudentSample, losses: dict[str, Tensor], scale: float | Tensor = 1.0
    ) -> dict[str, Tensor]:
        """Norms of the gradients of the student's two losses at x^_theta, as a guide for choosing their weights.

        The gradients are with respect to the pixels for distillation in pixels, and otherwise with respect to the
        latents, which costs a backward pass through the decoder. The backward pass of the UNet is not run.

        Args:
            sample: sample that `losses` were computed from.
            losses: result of `student_losses`, before the backward pass.
            scale: see `diagnostics.gradient_norms`.

        Returns:
            Norms of the gradients of the weighted losses, and `gradient_at_sample/ratio`, adversarial over
            distillation. Empty if one of the two losses is disabled.
        """
        if self.discriminator is None or self.teacher is None:
            return {}
        weighted = {
            "adversarial": self.adversarial_weight * losses["loss/adversarial"],
            "distillation": self.distillation_weight * losses["loss/distillation"],
        }
        at = sample.x if self.distillation_space == "pixel" else sample.z
        norms = gradient_norms(weighted, at, scale)
        norms["ratio"] = norms["adversarial"] / norms["distillation"]
        return {f"gradient_at_sample/{name}": norm for name, norm in norms.items()}

    def distillation(self, batch: Batch, sample: StudentSample) -> Tensor:
        """Eq. 4, without lambda. A teacher with another latent space encodes the student's pixels itself."""
        t, eps = batch.noise.t, batch.noise.eps_teacher
        make_target = self.teacher.nfsd_target if self.distillation_weighting == "nfsd" else self.teacher.target
        z = sample.z if self.teacher_latents is None else self.teacher_latents.moments(sample.x)[0]
        with self.autocast():
            target = make_target(z, eps, t, batch.teacher_conditions)
        weight = distillation_weight(self.teacher.schedule, t, self.distillation_weighting)
        if self.distillation_space == "latent":
            return distillation_loss(sample.z, target, weight)
        with torch.no_grad():
            target = (self.teacher_latents or self.latents).decode(target, batch.decode_window)
        return distillation_loss(sample.x, target, weight)
