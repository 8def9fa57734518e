"""The frozen teacher and its targets for a diffused student sample (paper 3.3)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .schedule import NoiseSchedule, per_sample
from .student import Condition

# The negative prompt of NFSD (2310.17590), which describes undesired properties of images.
NFSD_NEGATIVE_PROMPT = (
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
)
NFSD_TIMESTEP = 200  # below this timestep, the prediction for the empty prompt alone is the domain direction


def concatenate(*conditions: Condition) -> Condition:
    """Concatenate conditions along the batch, so that several predictions of the teacher run in one forward pass."""
    first = conditions[0]
    return {
        key: concatenate(*(cast(Condition, c[key]) for c in conditions))
        if isinstance(value, Mapping)
        else torch.cat([cast(Tensor, c[key]) for c in conditions])
        for key, value in first.items()
    }


@dataclass(frozen=True)
class TeacherConditions:
    """The teacher's conditions for the caption, the empty (or the user's negative) prompt, and NFSD's negative prompt.

    `unconditional` is needed for guidance and NFSD, `negative` only for NFSD.
    """

    caption: Condition
    unconditional: Condition | None = None
    negative: Condition | None = None


@dataclass(frozen=True)
class Teacher:
    """x^_psi of the paper. The network is frozen and called without gradients.

    Attributes:
        unet: callable `(x_t (B, C, H, W), timestep (B,), **condition)` whose result has `.sample`: a UNet, or the
            transformer of a flow-matching model.
        schedule: the teacher's own, unmodified schedule.
        guidance_scale: classifier-free guidance of the target; 1 = none.
        steps: K consecutive DDIM steps from t down to 0 (paper, Table 1f).
    """

    unet: Callable
    schedule: NoiseSchedule
    guidance_scale: float = 1.0
    steps: int = 1

    @torch.no_grad()
    def output(self, x_t: Tensor, t: Tensor, conditions: TeacherConditions) -> Tensor:
        """The network's raw prediction at (x_t, t), with guidance. `(B, C, H, W)` float32."""
        if self.guidance_scale == 1.0:
            return self.schedule.predict(self.unet, x_t, t, conditions.caption).float()
        assert conditions.unconditional is not None
        both = concatenate(conditions.caption, conditions.unconditional)
        output = self.schedule.predict(self.unet, x_t.repeat(2, 1, 1, 1), t.repeat(2), both)
        caption, unconditional = output.float().chunk(2)
        return unconditional + self.guidance_scale * (caption - unconditional)

    @torch.no_grad()
    def target(self, x_hat: Tensor, eps: Tensor, t: Tensor, conditions: TeacherConditions) -> Tensor:
        """x^_psi(x^_theta,t ; t): diffuse the student's sample to t and denoise it (paper Eq. 4).

        Args:
            x_hat: `(B, C, H, W)` student sample in the teacher's latent space; no gradient flows through it.
            eps: `(B, C, H, W)` unit Gaussian noise.
            t: `(B,)` int.

        Returns:
            `(B, C, H, W)` float32, detached.
        """
        x_t = self.schedule.diffuse(x_hat.detach(), eps, t)
        for k in range(self.steps - 1):
            output = self.output(x_t, t, conditions)
            x0, eps_hat = self.schedule.x0(output, x_t, t), self.schedule.eps(output, x_t, t)
            # t_k = t (K - k) / K: evenly spaced from the drawn t to t / K for the last prediction.
            t = torch.div(t * (self.steps - 1 - k), self.steps - k, rounding_mode="floor")
            x_t = self.schedule.diffuse(x0, eps_hat, t)
        return self.schedule.x0(self.output(x_t, t, conditions), x_t, t)

    @torch.no_grad()
    def nfsd_target(self, x_hat: Tensor, eps: Tensor, t: Tensor, conditions: TeacherConditions) -> Tensor:
        """The target with which the distillation loss is noise-free score distillation (NFSD, 2310.17590).

        d_C = eps(y) - eps(empty); d_D = eps(empty) if t < 200 else eps(empty) - eps(negative);
        target = x^_theta - (sigma_t / alpha_t) (d_D + g d_C), with g the guidance scale (7.5 in NFSD).
        The three predictions run as one batch. Arguments and result as `target`. alpha_t must not be 0, as it is at the
        last index of a flow-matching schedule.
        """
        x_t = self.schedule.diffuse(x_hat.detach(), eps, t)
        assert conditions.unconditional is not None
        assert conditions.negative is not None
        three = concatenate(conditions.caption, conditions.unconditional, conditions.negative)
        x_ttt, ttt = x_t.repeat(3, 1, 1, 1), t.repeat(3)
        output = self.schedule.predict(self.unet, x_ttt, ttt, three)
        eps_y, eps_empty, eps_negative = self.schedule.eps(output, x_ttt, ttt).chunk(3)
        d_condition = eps_y - eps_empty
        is_small = (t < NFSD_TIMESTEP).reshape(-1, 1, 1, 1)
        d_domain = torch.where(is_small, eps_empty, eps_empty - eps_negative)
        ratio = per_sample(self.schedule.sigmas, t, x_t) / per_sample(self.schedule.alphas, t, x_t)
        return x_hat.detach().float() - ratio * (d_domain + self.guidance_scale * d_condition)
