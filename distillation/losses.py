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

from discriminator import Discriminator, LatentDiscriminator
from distillation.diagnostics import discriminator_figures, gradient_norms
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
        condition: the captions as the student's UNet takes them.
        teacher_conditions: the captions as the teacher takes them; None without a teacher.
        c: `(B, D)` the discriminator's condition, or None. The latent discriminator adds that of t^.
        noise: every random number of these samples.
        discriminator_crop: three numbers in [0, 1) that the whole global batch shares, for the discriminator's crop.
        decode_window: the part of the images that is decoded and shown to D, the same one in the whole global batch;
            None where whole images are decoded.
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
        z: latent.
        x: pixels `(B, 3, P, P)`, None where no loss needs them.
        fake: F_k of the pixels, or of the diffused latent, with their graph; None without discriminator.
        real: F_k of the real images or latents, no gradient; None without discriminator.
    """

    z: Tensor
    x: Tensor | None
    fake: tuple[Tensor, ...] | None
    real: tuple[Tensor, ...] | None

    @property
    def pixels(self) -> Tensor:
        """`x`, for a loss that needs it."""
        assert self.x is not None
        return self.x

    @property
    def features(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """`real` and `fake`, for a loss that needs them."""
        assert self.real is not None
        assert self.fake is not None
        return self.real, self.fake


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
        student: the trainable UNet (wrapped for distribution).
        schedule: the student's, see `distillation.student`.
        latents: the student's latent space; decodes once an iteration.
        teacher: x^_psi, or None for adversarial training alone.
        teacher_latents: the teacher's latent space where it is another one than the student's (Table 1e), else None.
        discriminator: frozen F with its heads, on pixels or on latents, or None for distillation alone.
        heads: the trainable heads of `discriminator` (wrapped for distribution), or None.
        feature_schedule: the teacher's, by which latents are diffused for the latent discriminator; else None.
        reconstruct_real: whether D's real images are decode(z0) instead of x0.
        student_timesteps: T_student, by which the discriminator's accuracy is reported; empty for no such figures.
        autocast: makes the context of mixed precision.
    """

    student: nn.Module
    schedule: NoiseSchedule
    latents: LatentSpace
    teacher: Teacher | None
    teacher_latents: LatentSpace | None
    discriminator: Discriminator | LatentDiscriminator | None
    heads: nn.Module | None
    feature_schedule: NoiseSchedule | None = None
    adversarial_weight: float = 1.0
    distillation_weight: float = 2.5
    distillation_weighting: str = "exponential"
    distillation_space: str = "pixel"
    r1_gamma: float = 1e-5
    reconstruct_real: bool = False
    student_timesteps: Sequence[int] = ()
    autocast: Callable[..., AbstractContextManager[None]] = nullcontext

    def sample(self, batch: Batch) -> StudentSample:
        """x^_theta(x_s, s) for one forward of the student and at most one decoding, shared by the D and the G step."""
        noise, (mean, std) = batch.noise, batch.z0_moments
        z0 = mean + std * noise.eps_posterior
        x_s = diffuse_student(self.schedule, z0, noise.eps, noise.s)
        with self.autocast():
            z = student_sample(self.student, self.schedule, x_s, noise.s, batch.condition)
        needs_pixels = self.judges_pixels or (self.teacher is not None and self.distillation_space == "pixel")
        x = self.latents.decode(z, batch.decode_window) if needs_pixels else None
        if self.discriminator is None:
            return StudentSample(z, x, None, None)
        if not self.judges_pixels:
            with torch.no_grad():
                real = self.latent_features(z0, batch)
            return StudentSample(z, x, self.latent_features(z, batch), real)
        assert x is not None
        with torch.no_grad():
            real = self.features(self.real_images(batch, z0), noise.augment_real, batch)
        return StudentSample(z, x, self.features(x, noise.augment_fake, batch), real)

    @property
    def judges_pixels(self) -> bool:
        """Whether there is a discriminator, and it is the paper's, on pixels."""
        return isinstance(self.discriminator, Discriminator)

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
        assert isinstance(self.discriminator, Discriminator)
        with self.autocast():
            return tuple(f.float() for f in self.discriminator.features(images, augment, batch.discriminator_crop))

    def latent_features(self, z: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """F_k of latents `z`, real or generated, diffused by the teacher's schedule to t^ (LADD): K maps, float32.

        A real and a generated sample have the same t^ and eps^, so that they differ in their content alone.
        """
        assert isinstance(self.discriminator, LatentDiscriminator)
        assert self.feature_schedule is not None
        assert batch.teacher_conditions is not None
        t, eps = batch.noise.t_hat, batch.noise.eps_hat
        z_t = self.feature_schedule.diffuse(z, eps, t)
        with self.autocast():
            return tuple(f.float() for f in self.discriminator.features(z_t, t, batch.teacher_conditions.caption))

    def head_condition(self, batch: Batch) -> Tensor | None:
        """What the heads are told of the samples, `(B, D)`."""
        if isinstance(self.discriminator, LatentDiscriminator):
            return self.discriminator.condition(batch.c, batch.noise.t_hat)
        return batch.c

    def discriminator_losses(self, batch: Batch, sample: StudentSample) -> dict[str, Tensor]:
        """Eq. 3: hinge loss on real images and detached samples, plus gamma R1. `total` is the loss to minimize."""
        assert self.discriminator is not None
        assert self.heads is not None
        real, fake = sample.features
        # Leaf tensors, so that the gradient of R1 ends at the inputs of the heads and F needs no double backward.
        real = tuple(f.detach().requires_grad_(self.r1_gamma > 0) for f in real)
        fake = tuple(f.detach() for f in fake)
        logits_real, logits_fake = self.discriminator.logits(self.heads, real, fake, self.head_condition(batch))
        hinge = hinge_discriminator_loss(logits_real, logits_fake)
        r1 = self.r1_gamma * (r1_penalties(logits_real, real) if self.r1_gamma > 0 else hinge.new_zeros(len(real)))
        return {
            "total": hinge + r1.sum(),
            "loss/discriminator": hinge,
            "loss/r1": r1.sum(),
            **{f"discriminator/r1_tap_{k}": value for k, value in enumerate(r1)},
            **discriminator_figures(logits_real, logits_fake, batch.noise.s, self.student_timesteps),
        }

    def student_losses(self, batch: Batch, sample: StudentSample) -> dict[str, Tensor]:
        """Eq. 1: L_adv^G + lambda L_distill. `total` is the loss to minimize."""
        total, losses = sample.z.new_zeros(()), {}
        if self.discriminator is not None:
            with frozen(self.discriminator.heads) as heads:
                condition = self.head_condition(batch)
                logits = self.discriminator.logits_of_fake(heads, *sample.features, condition)
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

        The gradients are taken where both losses meet: at the pixels if both losses are in pixels, else at the latent,
        which costs a backward pass through what is between the two. The UNet's backward pass is not run.

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
        at = sample.pixels if self.judges_pixels and self.distillation_space == "pixel" else sample.z
        norms = gradient_norms(weighted, at, scale)
        norms["ratio"] = norms["adversarial"] / norms["distillation"]
        return {f"gradient_at_sample/{name}": norm for name, norm in norms.items()}

    def distillation(self, batch: Batch, sample: StudentSample) -> Tensor:
        """Eq. 4, without lambda. A teacher with another latent space encodes the student's pixels itself."""
        assert self.teacher is not None
        assert batch.teacher_conditions is not None
        t, eps = batch.noise.t, batch.noise.eps_teacher
        make_target = self.teacher.nfsd_target if self.distillation_weighting == "nfsd" else self.teacher.target
        z = sample.z if self.teacher_latents is None else self.teacher_latents.moments(sample.pixels)[0]
        with self.autocast():
            target = make_target(z, eps, t, batch.teacher_conditions)
        weight = distillation_weight(self.teacher.schedule, t, self.distillation_weighting)
        if self.distillation_space == "latent":
            return distillation_loss(sample.z, target, weight)
        with torch.no_grad():
            target = (self.teacher_latents or self.latents).decode(target, batch.decode_window)
        return distillation_loss(sample.pixels, target, weight)
