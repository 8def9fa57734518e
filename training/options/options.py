"""All flags of a run, grouped in frozen dataclasses."""

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.options.data import DataOptions
from training.options.declaration import Flag, flags_of
from training.options.hardware import HardwareOptions
from training.options.method import DiscriminatorOptions, MethodOptions
from training.options.models import LoraOptions, ModelOptions, SD3Options, SDXLOptions
from training.options.optimization import OptimizationOptions
from training.options.output import HubOptions, OutputOptions, ValidationOptions


@dataclass(frozen=True)
class Options:
    """The flags of a run. Functions that need one group take that group; functions that need several take all."""

    models: ModelOptions
    lora: LoraOptions
    data: DataOptions
    method: MethodOptions
    discriminator: DiscriminatorOptions
    optimization: OptimizationOptions
    output: OutputOptions
    validation: ValidationOptions
    hub: HubOptions
    hardware: HardwareOptions
    sdxl: SDXLOptions = SDXLOptions()  # noqa: RUF009 (immutable)
    sd3: SD3Options = SD3Options()  # noqa: RUF009 (immutable)

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Options":
        """The options that a parsed command line gives. Lists become tuples; flags that the parser lacks keep their
        defaults. `--distillation_space` becomes what it is by default: a run's records then name it.

        Raises:
            OptionError: a number is not finite or out of range.
        """
        groups = {}
        for name, group in GROUPS.items():
            values = {}
            for flag in flags_of(group):
                value = getattr(args, flag.name, flag.default)
                values[flag.name] = tuple(value) if isinstance(value, list) else value
                flag.check(values[flag.name])
            groups[name] = group(**values)
        if groups["method"].distillation_space is None:
            space = "latent" if groups["discriminator"].is_latent else "pixel"
            groups["method"] = dataclasses.replace(groups["method"], distillation_space=space)
        return cls(**groups)

    def flat(self) -> dict[str, Any]:
        """The value of each flag by name, in the order of declaration."""
        groups = [getattr(self, name) for name in GROUPS]
        return {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}

    def public(self) -> dict[str, Any]:
        """The flags that a model card may show: all but the private ones, and but those of one family's script alone
        that have their default, since the run may be of another family."""
        hidden = {flag.name for flag in all_flags() if flag.is_private}
        for name in ("sdxl", "sd3"):
            group = getattr(self, name)
            hidden |= {flag.name for flag in flags_of(GROUPS[name]) if getattr(group, flag.name) == flag.default}
        return {name: value for name, value in self.flat().items() if name not in hidden}

    def recorded(self) -> dict[str, Any]:
        """The flags that checkpoints and trackers may hold: all but the secret ones."""
        secret = {flag.name for flag in all_flags() if flag.is_secret}
        return {name: value for name, value in self.flat().items() if name not in secret}


GROUPS: dict[str, type] = {field.name: field.type for field in dataclasses.fields(Options)}  # pyright: ignore


def all_flags() -> Iterator[Flag]:
    """All flags of the training scripts."""
    for group in GROUPS.values():
        yield from flags_of(group)
