"""Sharding of UNets by block, and what a loop has to know of sharded networks."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from pipelines.precision import is_kept_in_float32
from training.sharding.plan import Sharding

# A block's weights are gathered at once: at most 140 MB of SDXL in float32, of which the whole has 10 GB.
BLOCKS = (BasicTransformerBlock, ResnetBlock2D)


def shard_unet(unet: UNet2DConditionModel, sharding: Sharding, trains: bool) -> None:
    """Divide the weights of `unet` among the processes, in place. Its parameters are `DTensor`s afterwards.

    Groups that are gathered together: each transformer block, each residual block, what is left of each stage, and what
    is left of the UNet (its first and last layers and its embeddings).

    Args:
        unet: whole, the same at every process; an adapter is already in it. Which of its parameters are trainable must
            not change later, since dtypes are derived from it at the first forward.
        trains: whether its blocks compute in the policy's mixed precision. A frozen network computes in the precision
            of its weights.
    """
    for module, is_precise in gathered_together(unet):
        fully_shard(
            module,
            mesh=sharding.mesh,
            mp_policy=sharding.mixed_precision if trains and not is_precise else MixedPrecisionPolicy(),
            offload_policy=sharding.offload,
            # By default torch would keep the root's weights gathered after a forward, where a forward without a
            # backward (validation) would leave old ones behind.
            reshard_after_forward=sharding.reshard_after_forward or module is unet,
        )
    if not trains and hasattr(unet, "reset_iter_state"):  # not in the oldest versions of torch that are supported
        # torch notes the order of all forwards until a backward comes, which for a frozen network is never.
        unet.register_forward_hook(_forget_forward)


def _forget_forward(unet: FSDPModule, *_: object) -> None:
    unet.reset_iter_state()


def gathered_together(unet: UNet2DConditionModel) -> Iterator[tuple[nn.Module, bool]]:
    """Modules whose parameters are gathered together, those of earlier modules excepted; the last is `unet` itself.

    With each comes whether it stays in float32 under mixed precision, as the outermost stages of an epsilon student do.
    So does the root, whose inputs are the noisy latents.
    """
    for stage in stages(unet):
        is_precise = is_kept_in_float32(stage)
        for module in stage.modules():
            if isinstance(module, BLOCKS):
                yield module, is_precise
        yield stage, is_precise
    yield unet, True


def stages(unet: UNet2DConditionModel) -> Iterator[nn.Module]:
    """Down blocks, middle block and up blocks."""
    yield from unet.down_blocks
    if unet.mid_block is not None:
        yield unet.mid_block
    yield from unet.up_blocks


def is_sharded(network: nn.Module | None) -> bool:
    """Whether `shard_unet` was called on it. Every process then has to take part in each of its forwards."""
    return isinstance(network, FSDPModule)


def reshard(network: nn.Module) -> None:
    """Free gathered weights, so that `network.parameters()` are the shards and the next forward gathers them anew."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def no_sync(network: nn.Module | None) -> AbstractContextManager:
    """A context of forward and backward passes after which processes do not exchange gradients yet.

    Of a sharded network, the processes that hold one copy together still add up their gradients: otherwise each of
    them would accumulate the gradients of all weights. Only copies (of hybrid sharding) wait.
    """
    if isinstance(network, FSDPModule):
        return _without_all_reduce(network)
    return network.no_sync() if isinstance(network, nn.parallel.DistributedDataParallel) else nullcontext()


@contextmanager
def _without_all_reduce(network: FSDPModule) -> Iterator[None]:
    network.set_requires_all_reduce(False)
    try:
        yield
    finally:
        network.set_requires_all_reduce(True)
