"""What a figure depends on besides its command: the machine and the versions of the libraries."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("torch", "diffusers", "transformers", "torchmetrics")


def pick_device(device: str | None) -> str:
    """`device` if it is given, else `cuda` where there is an accelerator, else `cpu`."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def describe_environment(device: str) -> dict[str, str | int]:
    """Processor or accelerator that `device` names, threads, and versions; packages that are absent are left out."""
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "cpu_count": os.cpu_count() or 0,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Version by package, of those of `PACKAGES` that are installed."""
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
