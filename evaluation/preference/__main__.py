"""A preference study between runs of `python -m evaluation generate`.

    python -m evaluation.preference serve RUN RUN [RUN ...] --study study.sqlite
    python -m evaluation.preference judge RUN RUN [RUN ...] --study study.sqlite --model yuvalkirstain/PickScore_v1
    python -m evaluation.preference elo --study study.sqlite --output elo.json

`serve` shows people two images at a time; `judge` lets a reward model vote; `elo` computes win rates and ELO scores.
Both kinds of votes may lie in one study and are counted apart.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from evaluation import environment
from evaluation.errors import EvaluationError, exit_status
from evaluation.preference.elo import ROUNDS
from evaluation.preference.server import StudyServer
from evaluation.preference.store import QUESTIONS, Store, read_study, read_votes
from evaluation.preference.summary import count_checks, counted_votes, markdown, summarize
from evaluation.runs.run import Run, open_comparable, write_json


def share(text: str) -> float:
    """Parse a number in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


# One flag a line where it fits: this is a table, and the formatter would make it three screens longer.
# fmt: off
def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.preference", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    options = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    serve = commands.add_parser("serve", help="show people pairs of images and keep their votes", **options)
    judge = commands.add_parser("judge", help="let a reward model vote", **options)
    elo = commands.add_parser("elo", help="win rates and ELO scores of the votes", **options)
    for command in (serve, judge, elo):
        command.add_argument("--study", type=Path, required=True, help="SQLite file of the study; made if need be.")
    for command in (serve, judge):
        add = command.add_argument
        add("runs", type=Path, nargs="+", metavar="RUN", help="Folders of runs over the same prompts and seeds.")
        add("--num_prompts", type=positive, default=None, help="Compare the first so many prompts; the paper has 100.")
    add = serve.add_argument
    add("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 lets other machines vote.")
    add("--port", type=int, default=8000, help="Port; 0 takes a free one.")
    add("--votes_per_task", type=positive, default=4, help="Votes on every pair, prompt and question.")
    add("--check_share", type=share, default=0.1, help="Share of attention checks: an image beside its spoilt copy.")
    add = judge.add_argument
    add("--model", required=True, help="Hub id or folder of a reward model in CLIP's layout.")
    add("--processor", default=None, help="Hub id or folder of its processor, where that is not with the model.")
    add("--batch_size", type=positive, default=32, help="Images that the model sees at once.")
    add("--device", default=None, help="cpu, cuda, cuda:1; default: the accelerator if there is one.")
    add = elo.add_argument
    add("--output", type=Path, default=None, help="JSON file for the figures; `evaluation compare --elo` plots them.")
    add("--voters", choices=["people", "judges"], default="people", help="Whose votes count.")
    add("--min_attention", type=share, default=0.8, help="Share of attention checks that a voter must have passed.")
    add("--rounds", type=positive, default=ROUNDS, help="Shuffled orders of the games.")
    add("--seed", type=int, default=0, help="Draws the orders.")
    return parser
# fmt: on


def open_study(args: argparse.Namespace) -> tuple[Store, list[Run], int]:
    """Open runs and store. Returns them and the number of prompts compared."""
    if len(args.runs) < 2:
        raise EvaluationError("a preference study needs at least two runs.")
    runs = open_comparable(args.runs)
    count = args.num_prompts or len(runs[0].prompts)
    if count > len(runs[0].prompts):
        raise EvaluationError(f"--num_prompts {count}: the runs have {len(runs[0].prompts)}.")
    study = {
        "runs": sorted(run.name for run in runs),
        "prompts_sha256": runs[0].manifest["prompts_sha256"],
        "seed": runs[0].manifest["seed"],
    }
    return Store(args.study, study, count), runs, count


def run_serve(args: argparse.Namespace, command: str) -> None:
    """Serve the page until interrupted."""
    if args.check_share == 1:
        raise EvaluationError("--check_share 1.0: attention checks alone never end; the share must be below 1.")
    store, runs, _ = open_study(args)
    try:
        server = StudyServer((args.host, args.port), store, runs, args.votes_per_task, args.check_share)
    except OSError as error:
        raise EvaluationError(f"--host {args.host} --port {args.port}: {error.strerror}; try --port 0.") from error
    with server:
        print(
            f"voting at http://{args.host}:{server.server_port}/ (end with Ctrl-C; votes are in {args.study})",
            flush=True,
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("closed")


def run_judge(args: argparse.Namespace, command: str) -> None:
    """Let a model vote on all pairs, prompts and questions."""
    from evaluation.metrics.encoders import ClipEncoder
    from evaluation.preference.reward_model import rewards, vote_by_reward

    store, runs, count = open_study(args)
    model = ClipEncoder(args.model, environment.pick_device(args.device), args.processor, flag="model")
    scores = {run.name: rewards(model, run, count, args.batch_size) for run in runs}
    votes, ties = vote_by_reward(store, f"judge:{args.model}", scores)
    print(f"{votes} votes by {args.model} on {' and '.join(QUESTIONS)}, {ties} ties")


def run_elo(args: argparse.Namespace, command: str) -> None:
    """Print the tables, and write the figures if asked."""
    study, votes = read_study(args.study), read_votes(args.study)
    counted = counted_votes(votes, args.voters, args.min_attention)
    checks = count_checks(votes)
    summary: dict[str, Any] = {
        **summarize(counted, study["runs"], args.rounds, args.seed),
        "voters": args.voters,
        "num_voters": len({vote["voter"] for vote in counted}),
        "inattentive": sorted(voter for voter, (passed, seen) in checks.items() if passed < args.min_attention * seen),
        "command": command,
    }
    print(markdown(summary))
    print(f"{len(counted)} votes of {summary['num_voters']} {args.voters}; "
          f"{len(summary['inattentive'])} voters left out for failed attention checks.")  # fmt: skip
    if args.output:
        write_json(args.output, summary)


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser().parse_args(argv)
    command = shlex.join(["python", "-m", "evaluation.preference", *argv])
    commands = {"serve": run_serve, "judge": run_judge, "elo": run_elo}
    return exit_status(lambda: commands[args.command](args, command))


if __name__ == "__main__":
    sys.exit(main())
