"""The random numbers of an iteration, drawn separately for each sample.

The numbers of a sample only depend on the seed and on its position in the stream of training samples. Therefore, a
resumed run needs no random states, two ranks draw the same numbers as one rank with twice the batch size, and
accumulated micro-batches the same as one batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from discriminator import AUGMENT_NUMBERS


def derive_seed(*parts: int) -> int:
    """Derive a 63-bit seed from integers. Unlike with a sum, (1, 0) and (0, 1) give unrelated seeds."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class SampleNoise:
    """The random numbers of B samples, with the paper's symbols.

    Attributes:
        eps_posterior: `(B, C, H, W)` unit Gaussian, to sample from the encoder's posterior.
        s: `(B,)` int64 student timestep, from T_student.
        eps: `(B, C, H, W)` unit Gaussian, diffuses z0 to s.
        t: `(B,)` int64 teacher timestep.
        eps_teacher: `(B, C, H, W)` unit Gaussian, diffuses x^_theta to t.
        augment_real, augment_fake: `(B, AUGMENT_NUMBERS)` uniform in [0, 1), for DiffAugment.
        t_hat: `(B,)` int64 timestep at which the latent discriminator judges.
        eps_hat: `(B, C, H, W)` unit Gaussian, diffuses z0 and x^_theta to t^.
    """

    eps_posterior: Tensor
    s: Tensor
    eps: Tensor
    t: Tensor
    eps_teacher: Tensor
    augment_real: Tensor
    augment_fake: Tensor
    t_hat: Tensor
    eps_hat: Tensor

    def to(self, device: torch.device) -> "SampleNoise":
        """The same numbers on `device`."""
        return SampleNoise(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass(frozen=True)
class NoiseSettings:
    """The seed and the distributions of the random numbers.

    Attributes:
        seed: seed of the run.
        student_timesteps: T_student, ascending.
        student_probabilities: of each, same length, sums to 1 (uniform in the paper).
        teacher_timesteps: `[low, high)`, t is uniform in it.
        warmup_positions: first positions of the stream, whose s is drawn by `warmup_probabilities` instead.
        warmup_probabilities: as `student_probabilities`; None without warm-up.
        t_hat_mean, t_hat_std: t^ / T is the logistic function of a Gaussian with this mean and deviation.
        num_timesteps: T, of the teacher's schedule.
    """

    seed: int
    student_timesteps: tuple[int, ...]
    student_probabilities: tuple[float, ...]
    teacher_timesteps: tuple[int, int]
    warmup_positions: int = 0
    warmup_probabilities: tuple[float, ...] | None = None
    t_hat_mean: float = 1.0
    t_hat_std: float = 1.0
    num_timesteps: int = 1000

    def probabilities(self, position: int) -> tuple[float, ...]:
        """Of each student timestep, for the sample at `position` of the stream."""
        is_warmup = position < self.warmup_positions and self.warmup_probabilities is not None
        return self.warmup_probabilities if is_warmup else self.student_probabilities


def draw_noise(settings: NoiseSettings, positions: Sequence[int], latent_shape: tuple[int, int, int]) -> SampleNoise:
    """Draw for the samples at `positions` of the stream. CPU tensors; latent_shape is `(C, H, W)`."""
    low, high = settings.teacher_timesteps

    def draw_one(position: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(derive_seed(settings.seed, position))
        u_s, u_t = torch.rand(2, generator=g, dtype=torch.float64).tolist()
        edges = np.cumsum(settings.probabilities(position))
        # The last edge can fall short of 1 by rounding: the index is clamped, not trusted.
        s = settings.student_timesteps[min(int(np.searchsorted(edges, u_s, side="right")), len(edges) - 1)]
        return (
            torch.randn(latent_shape, generator=g),
            torch.tensor(s),
            torch.randn(latent_shape, generator=g),
            torch.tensor(low + int(u_t * (high - low))),
            torch.randn(latent_shape, generator=g),
            torch.rand(AUGMENT_NUMBERS, generator=g),
            torch.rand(AUGMENT_NUMBERS, generator=g),
            _draw_t_hat(settings, g),
            torch.randn(latent_shape, generator=g),
        )

    return SampleNoise(*(torch.stack(column) for column in zip(*(draw_one(int(p)) for p in positions))))


def _draw_t_hat(settings: NoiseSettings, generator: torch.Generator) -> Tensor:
    """t^ = floor(T sigmoid(m + s n)) with n unit Gaussian: logit-normal, as LADD draws its noise levels."""
    n = torch.randn((), generator=generator, dtype=torch.float64)
    share = torch.sigmoid(settings.t_hat_mean + settings.t_hat_std * n)
    # The logistic function rounds to 1 for large arguments.
    return (settings.num_timesteps * share).long().clamp(max=settings.num_timesteps - 1)


def draw_discriminator_crop(seed: int, iteration: int) -> tuple[float, float, float]:
    """Three numbers in [0, 1) for the discriminator's crop, shared by all ranks and micro-batches of an iteration."""
    generator = torch.Generator().manual_seed(derive_seed(seed, iteration, 1))
    coin, top, left = torch.rand(3, generator=generator).tolist()
    return coin, top, left


def draw_decode_window(seed: int, iteration: int) -> tuple[float, float]:
    """Two numbers in [0, 1) for the decoded window of the images, shared like the discriminator's crop."""
    generator = torch.Generator().manual_seed(derive_seed(seed, iteration, 3))
    top, left = torch.rand(2, generator=generator).tolist()
    return top, left
