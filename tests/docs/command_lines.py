"""Checks a command line without running it: its program, script, module or target exists and its parser accepts it."""

import argparse
import functools
import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import pairwise
from unittest.mock import patch

from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser as torchrun_parser

from tests.docs.markdown import ROOT
from tests.packaging.requirements import read_project

ROOMS = (
    "benchmarks",
    "discriminator",
    "distillation",
    "docs",
    "evaluation",
    "examples",
    "pipelines",
    "tests",
    "training",
)
# Programs of others, whose command lines are not ours to know.
OTHER_PROGRAMS = {"cd", "export", "git", "hf", "nvidia-smi", "sbatch", "source", "tensorboard"}


class DocsError(Exception):
    """Something in a document that the tree does not have."""


class _Parsed(BaseException):
    """Ends a command where it has parsed its command line. No command catches it."""


def split(text: str) -> list[list[str]]:
    """The commands of a shell block, each as words; `&&`, `|` and line ends part them, comments are dropped."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        found.append([])
        for word in lexer:
            if set(word) <= set(";&|"):
                found.append([])
            else:
                found[-1].append(word)
    return [words for words in found if words]


def check_command(words: Sequence[str]) -> None:
    """Check one command.

    Raises:
        DocsError: it names what does not exist, or its parser refuses it.
    """
    words = list(words)
    while re.match(r"\w+=", words[0]):  # variables of the environment
        del words[0]
    _check_paths(words)
    program, rest = words[0], words[1:]
    if program in ("python", "python3"):
        _check_python(rest)
    elif program == "accelerate" and rest[:1] == ["launch"]:
        _check_launched(launch_command_parser(), rest[1:])
    elif program == "torchrun":
        _check_launched(torchrun_parser(), rest)
    elif program == "make":
        _check_make(rest)
    elif program == "pip":
        _check_pip(rest)
    elif program in commands():
        _check_main(commands()[program], rest)
    elif program not in OTHER_PROGRAMS and program != "accelerate":
        raise DocsError(f"{program}: no check knows this program; add it to {__name__}")


def make_targets() -> set[str]:
    """The Makefile's targets."""
    lines = re.findall(r"^([a-z][\w\- ]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {target for line in lines for target in line.split()}


@functools.cache
def commands() -> dict[str, str]:
    """The module of each installed command."""
    source = (ROOT / "add_diffusers/commands.py").read_text()
    modules = dict(re.findall(r'def (\w+)\(\).*?_run\("([\w.]+)"\)', source, re.DOTALL))
    return {name: modules[target.split(":")[1]] for name, target in read_project()["scripts"].items()}


def module_exists(name: str) -> bool:
    """Whether Python finds the module, and a folder has a `__main__`."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return False
    if spec is None:
        return False
    return spec.submodule_search_locations is None or importlib.util.find_spec(f"{name}.__main__") is not None


@functools.cache
def known_flags() -> frozenset[str]:
    """Every flag of ours and of the two launchers, for those that a text mentions on their own."""
    parsers = [launch_command_parser(), torchrun_parser()]
    for path in [*ROOT.glob("train_*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]:
        source = path.read_text()
        if re.search(r"^def main\(", source, re.MULTILINE) and "pars" in source and "tests" not in path.parts:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            _run_parser(module, [], lambda parser, *_: parsers.append(parser))
    return frozenset(flag for parser in parsers for flag in _flags(parser))


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _flags(command)


def _check_paths(words: Sequence[str]) -> None:
    for word in words:
        path = word.split("=")[-1]
        if path.split("/")[0] in ROOMS and "/" in path and not list(ROOT.glob(path.rstrip("/"))):
            raise DocsError(f"{path}: no such file")


def _check_python(rest: list[str]) -> None:
    if rest[:1] == ["-m"]:
        if not module_exists(rest[1]):
            raise DocsError(f"python -m {rest[1]}: no such module")
        if rest[1] == "pip":
            _check_pip(rest[2:])
        elif rest[1].split(".")[0] in ROOMS:
            spec = importlib.util.find_spec(rest[1])
            is_folder = spec is not None and spec.submodule_search_locations is not None
            _check_main(f"{rest[1]}.__main__" if is_folder else rest[1], rest[2:])
    elif rest and not rest[0].startswith("-"):
        _check_script(rest[0], rest[1:])


def _check_launched(parser: argparse.ArgumentParser, words: list[str]) -> None:
    args = _parse(lambda: parser.parse_args(words), words)
    if args.training_script:
        _check_script(args.training_script, args.training_script_args)


def _check_script(script: str, words: list[str]) -> None:
    if not (ROOT / script).is_file():
        raise DocsError(f"{script}: no such script")
    if script.startswith("train_"):
        _check_main(script.removesuffix(".py"), words)


def _check_make(words: list[str]) -> None:
    for word in words:
        if "=" not in word and not word.startswith("-") and word not in make_targets():
            raise DocsError(f"make {word}: no such target")


def _check_pip(words: list[str]) -> None:
    for option, file in pairwise(words):
        if option in ("-r", "-c") and not (ROOT / file).is_file():
            raise DocsError(f"pip {option} {file}: no such file")
    for extras in re.findall(r"\[([\w,\- ]+)\]", " ".join(word for word in words if word.startswith((".", "add-")))):
        if unknown := set(extras.split(",")) - read_project()["optional-dependencies"].keys():
            raise DocsError(f"pip: no extra {sorted(unknown)}")


def _check_main(module: str, words: list[str]) -> None:
    """Let the module's own `main` parse `words`, and end it there."""

    def parse(parser: argparse.ArgumentParser, original: Callable, args: Sequence[str] | None) -> None:
        # What a parser passes on, as `benchmarks.full_size` does to the training script's, must at least be known.
        _, more = original(parser, args)
        if unknown := {word for word in more if word.startswith("--")} - known_flags():
            raise DocsError(f"{module}: no flag {sorted(unknown)}")

    _parse(lambda: _run_parser(module, words, parse), words)


def _parse(parse: Callable, words: Sequence[str]):
    errors = StringIO()
    try:
        with redirect_stderr(errors), redirect_stdout(StringIO()):
            return parse()
    except SystemExit as ending:
        if ending.code:
            raise DocsError(f"{shlex.join(words)}: {errors.getvalue().splitlines()[-1]}") from None


def _run_parser(module: str, words: list[str], seen: Callable) -> None:
    """Call `module.main` with `words`; where it first parses them, call `seen(parser, parse_known_args, words)`."""
    original = argparse.ArgumentParser.parse_known_args

    def parse_known_args(parser, args=None, namespace=None):
        if not parser.add_help:  # a helper that looks for one flag, such as --config, before the command line is parsed
            return original(parser, args, namespace)
        with patch.object(argparse.ArgumentParser, "parse_known_args", original):  # for the parsers of sub-commands
            seen(parser, original, words if args is None else args)
        raise _Parsed

    main = importlib.import_module(module).main
    with (
        patch.object(argparse.ArgumentParser, "parse_known_args", parse_known_args),
        patch("sys.argv", [module, *words]),
    ):
        try:
            main()
        except _Parsed:
            return
    raise DocsError(f"{module} never parsed its command line")
