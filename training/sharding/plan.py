"""How a run is sharded, as accelerate's launcher or its environment variables ask for it.

accelerate's own preparation takes one network and one optimizer a call, and it has no sharding on a CPU. A run here
has two networks with an optimizer each and a frozen third. So accelerate is told that the run is data-parallel, which
is right for the discriminator's heads, and torch's `fully_shard` is called on the UNets with the policies of
accelerate's plugin.
"""

import os
from dataclasses import dataclass

import torch.distributed
from accelerate import Accelerator
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import FullyShardedDataParallelPlugin, disable_fsdp_ram_efficient_loading, parse_flag_from_env
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy

from training.errors import OptionError
from training.options.derived import precision, uses_latent_discriminator
from training.options.options import Options

USE_FSDP, USE_DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
USE_MESH = "ACCELERATE_USE_PARALLELISM_CONFIG"
# What accelerate must not see while it is set up: it would prepare the networks in its own way.
HIDDEN = {USE_FSDP: "false", USE_MESH: "false"}


@dataclass(frozen=True)
class Sharding:
    """How the UNets are divided.

    Attributes:
        mesh: the processes: `(shards,)`, or `(replicas, shards)` for hybrid sharding, where processes of one row hold
            one copy together.
        mixed_precision: of the blocks of a network that trains.
        offload: whether shards wait in main memory.
        reshard_after_forward: whether a block's whole weights are freed between its forward and its backward pass.
    """

    mesh: DeviceMesh
    mixed_precision: MixedPrecisionPolicy
    offload: OffloadPolicy
    reshard_after_forward: bool

    def describe(self) -> str:
        """In a few words, for the log."""
        *replicas, shards = self.mesh.shape
        hybrid = f", {replicas[0]} copies" if replicas else ""
        offload = ", weights in main memory" if isinstance(self.offload, CPUOffloadPolicy) else ""
        dtype = self.mixed_precision.param_dtype
        gathered = "" if dtype is None else f", gathered in {str(dtype).removeprefix('torch.')}"
        return f"FSDP2 over {shards} processes{hybrid}{gathered}{offload}"


# Meshes of sharded runs. They own process groups, which have to outlive the networks: see `accelerator.end_training`.
_meshes: list[DeviceMesh] = []


def check_launch(options: Options) -> None:
    """Refuse what accelerate's configuration asks for and a run cannot do, before accelerate is set up.

    Raises:
        OptionError: DeepSpeed, version 1 of FSDP, or something that cannot be sharded.
    """
    if parse_flag_from_env(USE_DEEPSPEED):
        raise OptionError(
            "accelerate's configuration got DeepSpeed: its engine owns one network with one optimizer, and two "
            "networks train against each other here; use `accelerate launch --use_fsdp --fsdp_version 2`, which shards "
            "the same state"
        )
    if not parse_flag_from_env(USE_FSDP):
        return
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise OptionError(f"--fsdp_version got {version}: only FSDP2 is supported; use --fsdp_version 2")
    if parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING"):
        raise OptionError(
            "--fsdp_activation_checkpointing got true: use this script's own --gradient_checkpointing in its place"
        )
    hardware = options.hardware
    if hardware.teacher_precision in ("8bit", "4bit"):
        raise OptionError(
            f"--teacher_precision got {hardware.teacher_precision!r}: packed weights cannot be sharded; use bf16, or "
            "leave --use_fsdp out, since a packed base is small enough to be replicated"
        )
    if options.optimization.use_8bit_adam:
        raise OptionError(
            "--use_8bit_adam got True: bitsandbytes cannot read sharded weights; leave it out, since sharding divides "
            "the optimizer's state by the number of processes"
        )
    if uses_latent_discriminator(options):
        raise OptionError(
            "--discriminator got 'latent': its forward through the teacher ends at the deepest tap, but a sharded one "
            "has to finish its forward; use --discriminator pixel, or leave --use_fsdp out"
        )
    if precision(options) == "fp16":
        raise OptionError("--mixed_precision got 'fp16': sharded training does not scale gradients; use bf16 or no")


def is_asked_for() -> bool:
    """Whether accelerate's launcher or its environment variables ask for sharding."""
    return parse_flag_from_env(USE_FSDP)


def plan_sharding(accelerator: Accelerator) -> Sharding | None:
    """The sharding that accelerate's environment variables ask for; None without `--use_fsdp`.

    Of the plugin's settings, mixed precision, offloading and resharding count. Blocks are the UNet's own (see
    `sharding.networks`), and checkpoints have the format of every run, so its wrapping policy and its kind of state
    dict have no effect.

    Raises:
        OptionError: there is one process only, or the sizes of the hybrid mesh do not multiply to their number.
    """
    if not parse_flag_from_env(USE_FSDP):
        return None
    if not torch.distributed.is_initialized():
        raise OptionError("--use_fsdp got one process without a launcher: use `accelerate launch` or torchrun")
    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    policy = plugin.mixed_precision_policy or MixedPrecisionPolicy()
    offload = plugin.cpu_offload
    if isinstance(offload, CPUOffloadPolicy) and accelerator.device.type == "cpu":
        offload = CPUOffloadPolicy(pin_memory=False)  # there is no device to copy to
    return Sharding(
        mesh=_make_mesh(accelerator),
        # What a block returns keeps its dtype: accelerate would round the UNet's output to half precision, which an
        # epsilon student multiplies by 14.6 (see pipelines/precision.py).
        mixed_precision=MixedPrecisionPolicy(param_dtype=policy.param_dtype, reduce_dtype=policy.reduce_dtype),
        offload=offload,
        reshard_after_forward=plugin.reshard_after_forward,
    )


def hide_fsdp_from_loading() -> None:
    """Let every process load all weights: `accelerate launch` asks transformers to load them at the first one only."""
    if parse_flag_from_env(USE_FSDP):
        disable_fsdp_ram_efficient_loading()


def _make_mesh(accelerator: Accelerator) -> DeviceMesh:
    replicas, shards, processes = 1, accelerator.num_processes, accelerator.num_processes
    if parse_flag_from_env(USE_MESH):
        sizes = ParallelismConfig()
        if sizes.total_size != sizes.data_parallel_size:
            raise OptionError(
                "accelerate's parallelism configuration got tensor, context or sequence parallelism: only "
                "--parallelism_config_dp_replicate_size and --parallelism_config_dp_shard_size are supported"
            )
        replicas, shards = sizes.dp_replicate_size, sizes.dp_shard_size
    if replicas * shards != processes:
        raise OptionError(
            f"--parallelism_config_dp_replicate_size got {replicas} and --parallelism_config_dp_shard_size got "
            f"{shards}: their product must be the number of processes, {processes}"
        )
    if replicas == 1:
        shape, names = (shards,), ("shard",)
    else:
        shape, names = (replicas, shards), ("replicate", "shard")
    _meshes.append(init_device_mesh(accelerator.device.type, shape, mesh_dim_names=names))
    return _meshes[-1]
