"""Timing of real iterations of the training loop."""

import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from train_add import iteration, prepare
from training.data.dataset import make_dataloader
from training.models.families import Family
from training.options.options import Options
from training.options.refusals import refuse
from training.processes.accelerator import make_accelerator


@dataclass(frozen=True)
class Speed:
    """Speed and memory of one iteration.

    Attributes:
        milliseconds: median time of an iteration.
        images_per_second: images per second on this device.
        peak_gib: peak tensor memory in the timed iterations; on a CPU, peak memory of the whole process.
    """

    milliseconds: float
    images_per_second: float
    peak_gib: float


def time_iterations(options: Options, family: type[Family], iterations: int, warmup: int = 3) -> Speed:
    """Prepare a run and time `iterations` of its iterations, including encoding but excluding data loading."""
    refuse(options)
    run = prepare(options, family, make_accelerator(options))
    device, batch_size = run.accelerator.device, run.effective_batch_size
    loader = make_dataloader(
        run.rows, run.reader, batch_size=batch_size, num_workers=options.data.dataloader_num_workers
    )
    steps = options.discriminator.discriminator_steps
    loaded = [list(islice(loader, steps)) for _ in range(warmup + iterations)]

    def iterate(samples: list[dict]) -> None:
        iteration(run.players, [run.make_batch(part, run.state.step) for part in samples])
        run.state.advance(steps * batch_size)

    for samples in loaded[:warmup]:
        iterate(samples)
    _reset_peak(device)
    seconds = []
    for samples in loaded[warmup:]:
        start = time.perf_counter()
        iterate(samples)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return Speed(median * 1e3, batch_size / median, _peak_bytes(device) / 2**30)


PROCESS = Path("/proc/self")  # only on Linux


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # on other systems, or if it is forbidden, the peak is that of the whole process
            (PROCESS / "clear_refs").write_text("5")  # resets the peak memory of the process to its current memory


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = PROCESS / "status"
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if peak is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(peak[1]) * 1024


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = 8192, seconds: float = 1.0) -> float:
    """Measured TFLOP/s of square matrix products of size `side`, as a reference for the device."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    torch.matmul(a, b)
    _wait(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        torch.matmul(a, b)
        _wait(device)
        count += 1
    return 2 * side**3 * count / (time.perf_counter() - start) / 1e12


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, str]:
    """Description of the device, for the results."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {"device": name, "torch": torch.__version__, "threads": str(torch.get_num_threads())}


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the processor, if the system provides it."""
    lines: Sequence[str] = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
