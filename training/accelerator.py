"""The processes of a run, their precision, trackers and logs."""

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
    """Accelerator with the run's precision and trackers, and quiet logs on all processes but the first."""
    report_to = None if options.output.report_to == NONE else options.output.report_to
    logging_dir = Path(options.output.output_dir, options.output.logging_dir)
    check_launch(options)
    hide_fsdp_from_loading()
    # Without this accelerate takes each process that a launcher starts on a CPU for the only one.
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
        if not sys.stderr.isatty():  # in a file each redrawing of a bar would be a line
            library.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # It reports a missing CPU kernel at import, in every run, although 4-bit weights also work without that kernel.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    set_tf32(options.hardware.allow_tf32)
    return accelerator


# Process groups of runs that have ended; see `end_training`.
_groups: list[torch.distributed.ProcessGroup | None] = []


def end_training(accelerator: Accelerator) -> None:
    """Finish the trackers and leave the process group.

    A reference to the group is kept for the life of the process. Otherwise DistributedDataParallel's reducer would drop
    the last one, and torch's destructor then joins gloo's threads while it holds the GIL, which those threads wait for
    in order to free their tensors: every process would hang after the student is saved. Where Python drops the last
    reference, torch releases the GIL first.
    """
    if torch.distributed.is_initialized():
        _groups.append(torch.distributed.group.WORLD)
    accelerator.end_training()


def set_tf32(allowed: bool) -> None:
    """Allow TF32 for all float32 matrix products and convolutions on a GPU, or for none.

    torch's own defaults differ: TF32 is off for matrix products and ON for convolutions, of which the discriminator's
    heads consist. The backward passes obey the same two switches, so the heads and R1 cannot be kept out of TF32 while
    the rest uses it: it is one choice for the whole run.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
