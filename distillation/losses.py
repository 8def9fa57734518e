"""The losses of one iteration of ADD in the paper's names. The training loop owns backward passes and updates.

Shapes: B samples, images `(B, 3, H, W)` in [-1, 1], latents `(B, 4, H/8, W/8)`, features of K taps `(B, C, N)`.
Where only a `decode_window` of each image is decoded, P is its side in pixels and images are `(B, 3, P, P)`; otherwise
P stands for H and W.
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
    """What one iteration starts from, on the device.

    Attributes:
        x0: `(B, 3, H, W)` real images in [-1, 1].
        z0_moments: mean and standard deviation `(B, 4, H/8, W/8)` of their latents.
        condition: the captions as the student's UNet takes them.
        teacher_conditions: the captions as the teacher takes them; None without distillation.
        c: `(B, D)` the discriminator's condition, or None.
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
    """x^_theta, and the discriminator's features of it and of x0.

    Attributes:
        z: latent.
        x: pixels `(B, 3, P, P)`, None where no loss needs them.
        fake: F_k of the pixels, with their graph; None without discriminator.
        real: F_k of the real images, no gradient; None without discriminator.
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
    """`module` in eval mode and without parameter gradients: in a G step D must be left exactly as it was, the power
    iteration of its spectral norm included."""
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
        discriminator: frozen F with its heads, or None for distillation alone.
        heads: the trainable heads of `discriminator` (wrapped for distribution), or None.
        reconstruct_real: whether D's real images are decode(z0) instead of x0.
        student_timesteps: T_student, by which the discriminator's accuracy is reported; empty for no such figures.
        autocast: makes the context of mixed precision.
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
    autocast: Callable[..., AbstractContextManager[None]] = nullcontext

    def sample(self, batch: Batch) -> StudentSample:
        """x^_theta(x_s, s) for one forward of the student and one decoding, shared by the D and the G step."""
        noise, (mean, std) = batch.noise, batch.z0_moments
        z0 = mean + std * noise.eps_posterior
        x_s = diffuse_student(self.schedule, z0, noise.eps, noise.s)
        with self.autocast():
            z = student_sample(self.student, self.schedule, x_s, noise.s, batch.condition)
        needs_pixels = self.discriminator is not None or (
            self.teacher is not None and self.distillation_space == "pixel"
        )
        x = self.latents.decode(z, batch.decode_window) if needs_pixels else None
        if self.discriminator is None or x is None:
            return StudentSample(z, x, None, None)
        with torch.no_grad():
            real = self.features(self.real_images(batch, z0), noise.augment_real, batch)
        return StudentSample(z, x, self.features(x, noise.augment_fake, batch), real)

    def real_images(self, batch: Batch, z0: Tensor) -> Tensor:
        """What D is shown as real, `(B, 3, P, P)`: x0, or what the decoder makes of its latent `z0`.

        The decoder leaves traces in the student's samples that no weight of the student can remove. Where they are
        easy to see, D learns these traces and little else; where z0 is decoded too, it has to learn the content.
        """
        if self.reconstruct_real:
            return self.latents.decode(z0, batch.decode_window)
        return batch.x0 if batch.decode_window is None else batch.decode_window.of_pixels(batch.x0, self.latents.factor)

    def features(self, images: Tensor, augment: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """F_k(images) of K taps, each `(B, C, N)` float32."""
        assert self.discriminator is not None
        with self.autocast():
            return tuple(f.float() for f in self.discriminator.features(images, augment, batch.discriminator_crop))

    def discriminator_losses(self, batch: Batch, sample: StudentSample) -> dict[str, Tensor]:
        """Eq. 3: hinge on the real images against the detached sample, plus gamma R1. `total` is to be minimized."""
        assert self.discriminator is not None
        assert self.heads is not None
        real, fake = sample.features
        # Leaves, so that R1's gradient ends at the heads' inputs and F needs no double backward.
        real = tuple(f.detach().requires_grad_(self.r1_gamma > 0) for f in real)
        fake = tuple(f.detach() for f in fake)
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
        """Eq. 1: L_adv^G + lambda L_distill. `total` is to be minimized."""
        total, losses = sample.z.new_zeros(()), {}
        if self.discriminator is not None:
            with frozen(self.discriminator.heads) as heads:
                logits = self.discriminator.logits_of_fake(heads, *sample.features, batch.c)
                losses["loss/adversarial"] = hinge_generator_loss(logits)
            total = total + self.adversarial_weight * losses["loss/adversarial"]
        if self.teacher is not None:
            losses["loss/distillation"] = self.distillation(batch, sample)
            total = total + self.distillation_weight * losses["loss/distillation"]
        return {"total": total, "loss/student": total, **losses}

    def gradient_norms(
        self, sample: StudentSample, losses: dict[str, Tensor], scale: float | Tensor = 1.0
    ) -> dict[str, Tensor]:
        """How strongly the two losses of the student pull at x^_theta, to choose their weights by.

        The gradients are taken where both losses meet: at the pixels for distillation in pixels, else at the latent,
        which costs a backward pass through the decoder. The UNet's backward pass is not run.

        Args:
            sample: that `losses` were computed from.
            losses: of `student_losses`, before their backward pass.
            scale: as in `diagnostics.gradient_norms`.

        Returns:
            Norms of the gradients of the weighted losses and `gradient_at_sample/ratio`, adversarial over
            distillation. Empty where one of the two losses is off.
        """
        if self.discriminator is None or self.teacher is None:
            return {}
        weighted = {
            "adversarial": self.adversarial_weight * losses["loss/adversarial"],
            "distillation": self.distillation_weight * losses["loss/distillation"],
        }
        at = sample.pixels if self.distillation_space == "pixel" else sample.z
        norms = gradient_norms(weighted, at, scale)
        norms["ratio"] = norms["adversarial"] / norms["distillation"]
        return {f"gradient_at_sample/{name}": norm for name, norm in norms.items()}

    def distillation(self, batch: Batch, sample: StudentSample) -> Tensor:
        """Eq. 4, before lambda. A teacher in another latent space sees the student's pixels through its own encoder."""
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
