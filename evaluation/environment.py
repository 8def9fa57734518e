"""What a figure depends on besides its command: the machine and the versions."""

import os
import platform
from importlib.metadata import version

import torch

PACKAGES = ("torch", "diffusers", "transformers", "torchmetrics")


def pick_device(device: str | None) -> str:
    """`device` if given, else the accelerator if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def describe(device: str) -> dict[str, str | int]:
    """Name the processor or accelerator that works, and the versions."""
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "cpu_count": os.cpu_count() or 0,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:  # not Linux
        names = []
    return names[0] if names else platform.machine()
