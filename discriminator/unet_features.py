"""The features of the latent discriminator: a frozen UNet, tapped after its attention blocks (LADD, 2403.12015)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models import Transformer2DModel
from torch import Tensor


class _DeepestTapReachedError(Exception):
    """Ends the forward of the UNet; what comes after the deepest tap is not needed."""


@dataclass(frozen=True)
class UNetFeatures:
    """F of the latent discriminator: the teacher's UNet up to the deepest of its taps.

    The UNet may also be the base of a LoRA student, which is called without its adapter. Hooks are registered only
    during a call.

    Attributes:
        unet: frozen.
        call: runs `unet` as the teacher, `(x_t, timestep=t, **condition)`, in its precision and without an adapter.
        taps: names of modules of `unet` in the order in which they run, as `find_taps` returns them.
    """

    unet: UNet2DConditionModel
    call: Callable
    taps: tuple[str, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels C_k of each tap."""
        return tuple(self.unet.get_submodule(tap).config.in_channels for tap in self.taps)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Features of diffused latents: K maps `(B, C_k, h_k, w_k)`, differentiable with respect to `x_t`.

        Args:
            x_t: `(B, C, H, W)` latents, diffused to `t`.
            t: `(B,)` int training indices of the UNet's schedule.
            condition: the UNet's other keyword arguments.
        """
        found: dict[str, Tensor] = {}

        def keep(tap: str, module: Transformer2DModel, args: tuple, output: tuple[Tensor, ...]) -> None:
            found[tap] = output[0]
            if tap == self.taps[-1]:
                raise _DeepestTapReachedError

        hooks = [self.unet.get_submodule(tap).register_forward_hook(partial(keep, tap)) for tap in self.taps]
        try:
            self.call(x_t, timestep=t, **condition)
        except _DeepestTapReachedError:
            # Raised outside of checkpointed parts: those are single layers, inside and between the attention blocks.
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(found[tap] for tap in self.taps)


def find_taps(unet: UNet2DConditionModel, parts: Sequence[str]) -> tuple[str, ...]:
    """The attention blocks of `parts` of a UNet, in the order in which they run.

    Args:
        parts: `down`, `mid` and `up`, or single blocks such as `down.1`.

    Returns:
        Names of modules, such as `down_blocks.1.attentions.0`.

    Raises:
        ValueError: a part has no attention block, or there is no such part.
    """
    blocks = {
        **{f"down.{i}": f"down_blocks.{i}" for i in range(len(unet.down_blocks))},
        "mid": "mid_block",
        **{f"up.{i}": f"up_blocks.{i}" for i in range(len(unet.up_blocks))},
    }
    names = {
        label: [
            f"{path}.attentions.{i}"
            for i, attention in enumerate(getattr(unet.get_submodule(path), "attentions", ()))
            if isinstance(attention, Transformer2DModel)
        ]
        for label, path in blocks.items()
    }
    chosen = {label: taps for label, taps in names.items() if any(_is_in(label, part) for part in parts) and taps}
    for part in parts:
        if not any(_is_in(label, part) for label in chosen):
            known = ", ".join(label for label, taps in names.items() if taps)
            raise ValueError(f"{part!r} names no attention block of the UNet; its blocks with attention are {known}")
    return tuple(tap for taps in chosen.values() for tap in taps)


def _is_in(label: str, part: str) -> bool:
    """Whether the block `label` is, or belongs to, `part`."""
    return label == part or label.startswith(f"{part}.")
