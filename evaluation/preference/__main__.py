"""A preference study between runs of `python -m evaluation generate`.

    python -m evaluation.preference serve RUN RUN [RUN ...] --study study.sqlite
    python -m evaluation.preference judge RUN RUN [RUN ...] --study study.sqlite --model yuvalkirstain/PickScore_v1
    python -m evaluation.preference elo --study study.sqlite --output elo.json

`serve` shows people two images at a time; `judge` lets a reward model vote; `elo` computes win rates and ELO scores.
One study can contain both kinds of votes, which are counted separately.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.command_line import OneLineParser, add_subcommand, make_parser, parse_count, parse_share
from evaluation.errors import EvaluationError, require_packages
from evaluation.preference.elo import ROUNDS
from evaluation.preference.store import QUESTIONS, Store, StudyBusyError
from evaluation.preference.summary import (
    count_checks,
    counted_votes,
    describe_voters,
    preference_markdown,
    summarize,
)
from evaluation.preference.votes import read_study, read_votes
from evaluation.runs.environment import pick_device
from evaluation.runs.files import write_json
from evaluation.runs.run import Run, open_comparable
from training.command import command_name, run_command

MODULE = "evaluation.preference"
REWARD_ADVICE = (
    "Give a Hub id or a folder with config.json, model.safetensors and tokenizer.json. If tokenizer and image "
    "processor are not with the model, give them with --processor."
)


# The formatter would wrap each option over several lines.
# fmt: off
def make_preference_parser() -> OneLineParser:
    """Make the parser of `python -m evaluation.preference`."""
    parser = make_parser(MODULE, __doc__)
    commands = parser.add_subparsers(dest="subcommand", required=True)
    serve = add_subcommand(commands, "serve", "Serve a web page that shows pairs of images and records votes.")
    judge = add_subcommand(commands, "judge", "Let a reward model vote.")
    elo = add_subcommand(commands, "elo", "Compute win rates and ELO scores from the votes.")
    for command in (serve, judge, elo):
        command.add_argument("--study", type=Path, required=True, help="SQLite file of the study. `serve` and `judge` "
            "create it if it does not exist.")
    for command in (serve, judge):
        add = command.add_argument
        add("runs", type=Path, nargs="+", metavar="RUN", help="Folders of runs over the same prompts and seeds.")
        add("--num_prompts", type=parse_count, default=None, help="Number of prompts to compare, starting with the "
            "first. The paper uses 100.")
    add = serve.add_argument
    add("--host", default="127.0.0.1", help="Address to listen on. 0.0.0.0 makes the page available to other machines.")
    add("--port", type=int, default=8000, help="Port to listen on. 0 selects a free port.")
    add("--allowed_hosts", nargs="+", default=[], metavar="NAME", help="Additional host names that browsers may use "
        "for this server, such as that of a proxy. The names of this machine are always allowed.")
    add("--votes_per_task", type=parse_count, default=4, help="Number of votes for each pair, prompt and question.")
    add("--check_share", type=parse_share, default=0.1, help="Fraction of attention checks, which show an image beside "
        "a degraded copy.")
    add = judge.add_argument
    add("--model", required=True, help="Hub id or folder of a reward model with the layout of CLIP.")
    add("--processor", default=None, help="Hub id or folder of the processor, if it is not with the model.")
    add("--batch_size", type=parse_count, default=32, help="Number of images per forward pass.")
    add("--device", default=None, help="Device, such as cpu, cuda or cuda:1. Defaults to the accelerator, if any.")
    add = elo.add_argument
    add("--output", type=Path, default=None, help="JSON file for the figures, for `evaluation compare --elo`.")
    add("--voters", choices=["people", "judges"], default="people", help="Voters whose votes are counted.")
    add("--min_attention", type=parse_share, default=0.8, help="Fraction of attention checks that a voter must pass.")
    add("--rounds", type=parse_count, default=ROUNDS, help="Number of random orders of the games to average over.")
    add("--seed", type=int, default=0, help="Seed for the orders.")
    return parser
# fmt: on


def open_study(args: argparse.Namespace) -> tuple[Store, list[Run], int]:
    """Open the study and the runs. Returns both and the number of prompts to compare."""
    if len(args.runs) < 2:
        raise EvaluationError("a preference study needs at least two runs.")
    runs = open_comparable(args.runs)
    count = args.num_prompts or len(runs[0].prompts)
    if count > len(runs[0].prompts):
        raise EvaluationError(f"--num_prompts {count}: the runs have {len(runs[0].prompts)} prompts.")
    study = {
        "runs": sorted(run.name for run in runs),
        "prompts_sha256": runs[0].manifest["prompts_sha256"],
        "seed": runs[0].manifest["seed"],
    }
    return Store(args.study, study, count), runs, count


def run_serve(args: argparse.Namespace, command: str) -> None:
    """Serve the page until interrupted."""
    if args.check_share == 1:
        raise EvaluationError("--check_share 1.0: give a number below 1, because attention checks alone never end.")
    require_packages("starlette", "uvicorn")
    from evaluation.preference.app import StudyPage, make_app
    from evaluation.preference.server import StudyServer, choose_hosts

    store, runs, _ = open_study(args)
    page = StudyPage(store, runs, args.votes_per_task, args.check_share)
    hosts = choose_hosts(args.host, args.allowed_hosts)
    server = StudyServer(make_app(page, hosts), args.host, args.port)
    print(f"Vote at {server.url} (end with Ctrl-C). The votes are in {args.study}.", flush=True)
    if args.host not in hosts[:2]:
        print(f"The server accepts the names {', '.join(hosts)}; --allowed_hosts adds others.", flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        print("closed")


def run_judge(args: argparse.Namespace, command: str) -> None:
    """Let a reward model vote on all pairs, prompts and questions."""
    from evaluation.metrics.encoders import ClipEncoder
    from evaluation.preference.reward_model import score_images, vote_by_reward

    store, runs, count = open_study(args)
    model = ClipEncoder(args.model, pick_device(args.device), args.processor, flag="model", advice=REWARD_ADVICE)
    scores = {run.name: score_images(model, run, count, args.batch_size) for run in runs}
    votes, ties = vote_by_reward(store, f"judge:{args.model}", scores)
    print(f"{votes} votes by {args.model} on {' and '.join(QUESTIONS)}, {ties} ties")


def run_elo(args: argparse.Namespace, command: str) -> None:
    """Print the tables, and write the figures to `--output` if it is given."""
    require_packages("scipy")
    study, votes = read_study(args.study), read_votes(args.study)
    counted = counted_votes(votes, args.voters, args.min_attention)
    failed = [voter for voter, (passed, seen) in count_checks(votes).items() if passed < args.min_attention * seen]
    summary: dict[str, Any] = {
        **summarize(counted, study["runs"], args.rounds, args.seed),
        "voters": args.voters,
        "num_voters": len({vote["voter"] for vote in counted}),
        "inattentive": describe_voters(votes, failed),
        "command": command,
    }
    print(preference_markdown(summary))
    print(
        f"{len(counted)} votes of {summary['num_voters']} {args.voters}; {len(failed)} voters are excluded because of "
        "failed attention checks."
    )
    if args.output:
        write_json(args.output, summary)


COMMANDS = {"serve": run_serve, "judge": run_judge, "elo": run_elo}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process.

    Raises:
        SystemExit: the command failed; it has the exit status.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    command = shlex.join([*command_name(MODULE).split(), *words])

    def run(args: argparse.Namespace) -> None:
        try:
            COMMANDS[args.subcommand](args, command)
        except StudyBusyError as error:
            raise EvaluationError(f"--study {args.study}: the file is locked by another program; try again.") from error

    run_command(make_preference_parser(), words, run)


if __name__ == "__main__":
    main()
