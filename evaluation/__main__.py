"""Measure and compare text-to-image pipelines.

    python -m evaluation generate --model REPO --prompts captions_val2017.json --num_prompts 5000 --output_dir RUN
    python -m evaluation measure RUN [RUN ...] --reference val2017
    python -m evaluation compare RUN RUN [RUN ...] --output_dir COMPARISON

If `generate` is killed, the same command continues. See `python -m evaluation.preference` for preference studies.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from evaluation.command_line import OneLineParser, add_subcommand, make_parser
from evaluation.generation import command as generation
from evaluation.metrics import command as metrics
from evaluation.reports import command as reports
from training.command import command_name, run_command

MODULE = "evaluation"
COMMANDS = {"generate": generation.run_generate, "measure": metrics.run_measure, "compare": reports.run_compare}


def make_evaluation_parser() -> OneLineParser:
    """Make the parser of `python -m evaluation`."""
    parser = make_parser(MODULE, __doc__)
    commands = parser.add_subparsers(dest="subcommand", required=True)
    generation.add_options(add_subcommand(commands, "generate", "Generate the images of a run, and time the pipeline."))
    metrics.add_options(add_subcommand(commands, "measure", "Compute the metrics of runs."))
    reports.add_options(add_subcommand(commands, "compare", "Write a table and a page that compare runs."))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process.

    Raises:
        SystemExit: the command failed; it has the exit status.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    facts = {"command": shlex.join([*command_name(MODULE).split(), *words])}

    def run(args: argparse.Namespace) -> None:
        COMMANDS[args.subcommand](args, facts)

    run_command(make_evaluation_parser(), words, run)


if __name__ == "__main__":
    main()
