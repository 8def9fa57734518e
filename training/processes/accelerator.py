"""Setup of accelerate: processes, precision, trackers and logging."""

import logging
import sys
from pathlib import Path

import diffusers
import torch
import torch.distributed
import transformers
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import ProjectConfiguration, parse_flag_from_env, patch_environment

from training.errors import OptionError
from training.options.derived import precision
from training.options.method import NONE
from training.options.options import Options
from training.sharding.plan import HIDDEN, check_launch, hide_fsdp_from_loading


def make_accelerator(options: Options) -> Accelerator:
    """Make an Accelerator with the run's precision and trackers. Only the local main process logs below ERROR.

    Raises:
        OptionError: accelerate is configured for DeepSpeed, version 1 of FSDP or another unsupported kind of training,
            or the options cannot be combined with FSDP2.
    """
    report_to = None if options.output.report_to == NONE else options.output.report_to
    logging_dir = Path(options.output.output_dir, options.output.logging_dir)
    check_launch(options)
    hide_fsdp_from_loading()
    # Without `cpu`, accelerate treats each process that a launcher starts on a CPU as the only one.
    is_on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    PartialState(is_on_cpu)  # its choice of the backend depends on what is hidden below
    with patch_environment(**HIDDEN):
        accelerator = Accelerator(
            cpu=is_on_cpu,
            mixed_precision=precision(options),
            log_with=report_to,
            project_config=ProjectConfiguration(project_dir=options.output.output_dir, logging_dir=str(logging_dir)),
        )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise OptionError(
            f"accelerate's configuration got distributed_type {accelerator.distributed_type.value}: two networks train "
            "against each other here, which this loop does on one device, by data parallelism (MULTI_GPU) or with "
            "--use_fsdp --fsdp_version 2; change it with `accelerate config`"
        )
    level = logging.INFO if accelerator.is_local_main_process else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=level)
    for library in (transformers.utils.logging, diffusers.utils.logging):
        library.set_verbosity(logging.WARNING if level == logging.INFO else logging.ERROR)
        if not sys.stderr.isatty():  # in a log file, each update of a bar would be a new line
            library.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # bitsandbytes reports a missing CPU kernel on each import, although 4-bit weights also work without that kernel.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    set_tf32(options.hardware.allow_tf32)
    return accelerator


# Process groups of runs that have ended; see `end_training`.
_groups: list[torch.distributed.ProcessGroup | None] = []


def end_training(accelerator: Accelerator) -> None:
    """Finish the trackers and leave the process group.

    A reference to the group is kept until the process exits. Otherwise DistributedDataParallel's reducer would drop the
    last reference, and torch's destructor would join gloo's threads while holding the GIL, which those threads need to
    free their tensors: all processes would hang after the student is saved. When Python drops the last reference, torch
    releases the GIL first.
    """
    if torch.distributed.is_initialized():
        _groups.append(torch.distributed.group.WORLD)
    accelerator.end_training()


def set_tf32(allowed: bool) -> None:
    """Enable or disable TF32 for all float32 matrix products and convolutions on a GPU.

    PyTorch's own defaults differ: TF32 is off for matrix products and ON for convolutions, of which the discriminator's
    heads consist. The backward passes use the same two switches, so it is not possible to exclude the heads and R1 from
    TF32 while the rest of the run uses it.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
