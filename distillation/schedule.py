"""Noise schedules, and conversions between a network's prediction, x0 and eps.

Notation of the paper: x_t = alpha_t x0 + sigma_t eps, with alpha_t^2 + sigma_t^2 = 1 and t a training index 0..T-1
(the paper's "1000" is index 999). Everything is computed in float32: 1 / alpha_999 is 14.6 for Stable Diffusion, and
half precision is too coarse for the small difference x - sigma eps that it multiplies.
"""

from dataclasses import dataclass

from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


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


def per_sample(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """`values[t]` in float32, with the shape `(B, 1, ..., 1)` to be broadcast to `like` `(B, ...)`."""
    return values.to(t.device)[t].float().reshape(-1, *([1] * (like.ndim - 1)))


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha_t and sigma_t of a network, and its prediction type.

    Attributes:
        alphas: `(T,)` float32, sqrt(alphas_cumprod).
        sigmas: `(T,)` float32, sqrt(1 - alphas_cumprod).
        prediction_type: "epsilon", "v_prediction" (v = alpha eps - sigma x0) or "sample" (x0 itself).
    """

    alphas: Tensor
    sigmas: Tensor
    prediction_type: str

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

    def __len__(self) -> int:
        return len(self.alphas)

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
        return output

    def eps(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a network's `output` at (x_t, t) to the predicted eps. All `(B, C, H, W)`. Returns float32."""
        alpha, sigma = per_sample(self.alphas, t, x_t), per_sample(self.sigmas, t, x_t)
        output, x_t = output.float(), x_t.float()
        if self.prediction_type == "epsilon":
            return output
        if self.prediction_type == "v_prediction":
            return sigma * x_t + alpha * output
        return (x_t - alpha * output) / sigma
