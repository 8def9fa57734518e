"""Noise schedules, and conversions between a network's prediction, x0 and eps.

Notation of the paper: x_t = alpha_t x0 + sigma_t eps, and t is a training index 0..T-1 (the paper's "1000" is index
999). Diffusion models have alpha_t^2 + sigma_t^2 = 1, flow-matching models alpha_t + sigma_t = 1. Everything here is
computed in float32: 1 / alpha_999 is 14.6 for Stable Diffusion, and half precision would lose the small difference
x - sigma eps that it multiplies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")  # of a schedule with alpha_t^2 + sigma_t^2 = 1
FLOW = "flow"  # of a schedule with alpha_t + sigma_t = 1


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod) so that the last value is exactly 0 and the first one is unchanged.

    Args:
        alphas_cumprod: `(T,)`, in (0, 1], decreasing.

    Returns:
        `(T,)`, the rescaled alphas_cumprod.

    Source: Lin et al. 2305.08891, Algorithm 1.
    """
    a = alphas_cumprod.double().sqrt()
    a = (a - a[-1]) * a[0] / (a[0] - a[-1])
    return a.square()


def shifted_sigmas(num_train_timesteps: int, shift: float) -> Tensor:
    """The noise levels of flow matching at the training indices k = 0..T-1.

    With u = (k + 1) / T, sigma_k = shift u / (1 + (shift - 1) u): the more pixels an image has, the more noise is
    needed to hide it, so models of large images are trained and sampled with a shift above 1. The last one is 1.

    Returns:
        `(T,)` float64, rising, in (0, 1].

    Source: Esser et al. 2403.03206, Eq. 23; diffusers' `FlowMatchEulerDiscreteScheduler` has them in falling order.
    """
    u = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    return shift * u / (1 + (shift - 1) * u)


def per_sample(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """`values[t]` in float32, with the shape `(B, 1, ..., 1)` to be broadcast to `like` `(B, ...)`."""
    return values.to(t.device)[t].float().reshape(-1, *([1] * (like.ndim - 1)))


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha_t and sigma_t of a network, and its prediction type.

    Attributes:
        alphas: `(T,)` float32, sqrt(alphas_cumprod); 1 - sigma for flow matching.
        sigmas: `(T,)` float32, sqrt(1 - alphas_cumprod), or the noise levels of flow matching.
        prediction_type: "epsilon", "v_prediction" (v = alpha eps - sigma x0), "sample" (x0 itself) or "flow"
            (v = eps - x0).
        times: `(T,)` what the network is given in place of t, or None where that is t itself.
    """

    alphas: Tensor
    sigmas: Tensor
    prediction_type: str
    times: Tensor | None = None

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Tensor, prediction_type: str, zero_terminal_snr: bool = False
    ) -> "NoiseSchedule":
        """Build from a diffusers scheduler's `alphas_cumprod` `(T,)`.

        Args:
            zero_terminal_snr: rescale the whole schedule (2305.08891) so that alpha_{T-1} = 0.

        Raises:
            ValueError: the prediction type is unknown, or an epsilon network has a schedule that ends at zero SNR, for
                which x0 = (x - sigma eps) / alpha would divide by zero.
        """
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}")
        alphas_cumprod = alphas_cumprod.double()
        if zero_terminal_snr:
            alphas_cumprod = rescale_zero_terminal_snr(alphas_cumprod)
        if prediction_type == "epsilon" and alphas_cumprod[-1] <= 0:
            raise ValueError(
                "an epsilon network cannot use a schedule rescaled to zero terminal SNR: at the last timestep "
                "x0 = (x - sigma * eps) / alpha divides by alpha = 0. Keep the original schedule and feed pure noise "
                "at the last timestep instead (--zero_terminal_snr terminal)."
            )
        return cls(alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float(), prediction_type)

    @classmethod
    def flow_matching(cls, num_train_timesteps: int = 1000, shift: float = 1.0) -> "NoiseSchedule":
        """x_t = (1 - sigma) x0 + sigma eps, of a network that is given T sigma and predicts v = eps - x0.

        At the last index sigma is 1 and the input pure noise: zero terminal SNR without any change of the schedule.

        Args:
            shift: of `FlowMatchEulerDiscreteScheduler`; 3 for Stable Diffusion 3.

        Raises:
            ValueError: for a shift that is not above 0.
        """
        if not shift > 0:
            raise ValueError(f"shift must be above 0, got {shift}")
        sigmas = shifted_sigmas(num_train_timesteps, shift)
        return cls((1 - sigmas).float(), sigmas.float(), FLOW, (num_train_timesteps * sigmas).float())

    def __len__(self) -> int:
        return len(self.alphas)

    def predict(self, network: Callable[..., Any], x_t: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The raw output of `network` at (x_t, t), `(B, C, H, W)`.

        The timestep is a keyword, because UNets take it as their second argument and transformers as their fourth.

        Args:
            t: `(B,)` int training indices.
            condition: the network's other keyword arguments.
        """
        return network(x_t, timestep=t if self.times is None else self.times.to(t.device)[t], **condition).sample

    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t eps (paper 3.1). x0, eps: `(B, C, H, W)`; t: `(B,)` int. Returns float32."""
        return per_sample(self.alphas, t, x0) * x0.float() + per_sample(self.sigmas, t, x0) * eps.float()

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a network's `output` at (x_t, t) to the predicted x0. All `(B, C, H, W)`. Returns float32."""
        alpha, sigma = per_sample(self.alphas, t, x_t), per_sample(self.sigmas, t, x_t)
        output, x_t = output.float(), x_t.float()
        if self.prediction_type == "epsilon":
            return (x_t - sigma * output) / alpha
        if self.prediction_type == "v_prediction":
            return alpha * x_t - sigma * output
        if self.prediction_type == FLOW:
            return x_t - sigma * output
        return output

    def eps(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a network's `output` at (x_t, t) to the predicted eps. All `(B, C, H, W)`. Returns float32."""
        alpha, sigma = per_sample(self.alphas, t, x_t), per_sample(self.sigmas, t, x_t)
        output, x_t = output.float(), x_t.float()
        if self.prediction_type == "epsilon":
            return output
        if self.prediction_type == "v_prediction":
            return sigma * x_t + alpha * output
        if self.prediction_type == FLOW:
            return x_t + alpha * output
        return (x_t - alpha * output) / sigma
