"""Description of the machine and the library versions, to be stored with the figures."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("torch", "diffusers", "transformers", "torchmetrics")


def pick_device(device: str | None) -> str:
    """`device` if it is given, else `cuda` if it is available, else `cpu`."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def describe_environment(device: str) -> dict[str, str | int]:
    """Name of the processor or accelerator, number of threads, and versions of the installed packages."""
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "cpu_count": os.cpu_count() or 0,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Versions of those `PACKAGES` that are installed, by package."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:  # not Linux
        names = []
    return names[0] if names else platform.machine()
