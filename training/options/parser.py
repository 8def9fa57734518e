"""The command line of the training scripts, built from the declarations, and --config FILE."""

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from training.options.declaration import flags_of
from training.options.models import SD3Options, SDXLOptions
from training.options.options import GROUPS

CONFIG_HELP = (
    "YAML file with flags, one `name: value` per line; see examples/recipes. Flags on the command line take precedence."
)


class TrainingParser(argparse.ArgumentParser):
    """An argument parser that reads `--config`, reports errors in one line, and suggests names for unknown flags."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse the flags of `--config`, then those of the command line."""
        words = list(sys.argv[1:] if args is None else args)
        return super().parse_args([*self._words_of_config(words), *words], namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line to stderr and exit with status 2."""
        known = [option for action in self._actions for option in action.option_strings]
        typos = [word for word in message.split() if word.startswith("--") and word not in known]
        close = [match for typo in typos for match in difflib.get_close_matches(typo, known, n=1)]
        hint = f"; did you mean {', '.join(close)}?" if close and "unrecognized" in message else ""
        self.exit(2, f"{self.prog}: error: {message}{hint}\n")

    def _words_of_config(self, words: list[str]) -> list[str]:
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config")
        path = finder.parse_known_args(words)[0].config
        return [] if path is None else self._read_config(Path(path))

    def _read_config(self, path: Path) -> list[str]:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.error(f"--config got {str(path)!r}: {' '.join(str(error).split())}")
        if not isinstance(content, dict):
            self.error(f"--config got {str(path)!r}: the file must contain `name: value` lines")
        actions = {option[2:]: action for action in self._actions for option in action.option_strings}
        words = []
        for name, value in content.items():
            if name not in actions or name == "config":
                close = difflib.get_close_matches(str(name), actions, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self.error(f"--config got {str(path)!r}: there is no flag {name!r}{hint}")
            words += self._words_of(path, name, value, is_switch=actions[name].nargs == 0)
        return words

    def _words_of(self, path: Path, name: str, value: Any, is_switch: bool) -> list[str]:
        if is_switch:
            if not isinstance(value, bool):
                self.error(f"--config got {str(path)!r}: {name} must be true or false, not {value!r}")
            return [f"--{name}"] if value else []
        if value is None:
            return []
        values = value if isinstance(value, list) else [value]
        # YAML reads an unquoted `no` as False.
        return [f"--{name}", *("no" if v is False else str(v) for v in values)]


def make_parser(description: str, more: Iterable[type] = ()) -> TrainingParser:
    """The parser of a training script.

    Args:
        description: first line of `--help`.
        more: additional options dataclasses of this script, such as `SDXLOptions`.
    """
    parser = TrainingParser(
        description=description,
        usage="%(prog)s --pretrained_teacher_model MODEL (--train_data_dir DIR | --dataset_name NAME) [FLAGS]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    shared = [group for group in GROUPS.values() if group not in (SDXLOptions, SD3Options)]
    for group in (*shared, *more):
        section = parser.add_argument_group(group.title)  # pyright: ignore[reportAttributeAccessIssue]
        for flag in flags_of(group):
            flag.add_to(section)
    return parser
