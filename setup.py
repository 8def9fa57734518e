"""List of the packages: each folder in ROOMS becomes `add_diffusers.<folder>`. All else is in pyproject.toml."""

from setuptools import find_packages, setup

ROOMS = ("discriminator", "distillation", "evaluation", "examples", "pipelines", "training")

setup(
    packages=[
        "add_diffusers",
        *(f"add_diffusers.{room}" for room in ROOMS),
        *(f"add_diffusers.{room}.{package}" for room in ROOMS for package in find_packages(room)),
    ],
    package_dir={"add_diffusers": "add_diffusers", **{f"add_diffusers.{room}": room for room in ROOMS}},
)
