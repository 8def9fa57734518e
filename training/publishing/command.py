"""Command line of `python -m training.publish`, which publishes a finished run on the Hub."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from training.command import command_name, run_command
from training.publishing.card.card import set_license
from training.publishing.card.facts import add_measured, read_measured
from training.publishing.folder.layout import CARD, MAIN, RUN_FILE, PublishError
from training.publishing.folder.published_folder import files_to_keep, published_files
from training.publishing.hub.push import check_repo_id, publish
from training.publishing.hub.token import clean_token
from training.publishing.variant import VARIANTS, add_variant, check_variant


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `python -m training.publish`."""
    parser = argparse.ArgumentParser(
        prog=command_name("training.publish"), description="Publish a finished run on the Hub."
    )
    add = parser.add_argument
    add("folder", metavar="DIR", type=Path, help="The --output_dir of a finished run.")
    add("--repo_id", required=True, help="Repo to push to, such as user/my-student. It is created if necessary.")
    add("--private", action="store_true", default=None, help="Create a private repo; refuse an existing public one.")
    add("--revision", default=MAIN, help="Branch to push to (default: main). It is created from main if necessary.")
    add("--license", default=None, help="Hub identifier of the licence for the card. Defaults to the base model's.")
    add("--variant", choices=VARIANTS, default=None, help="Also publish the weights in this precision, as a variant.")
    add("--measured", type=Path, default=None, metavar="FILE", help="JSON file with figures for the card: "
        "comparison.json of `python -m evaluation compare`, or "
        '{"command": "...", "figures": [{"steps": 1, ...}]}.')  # fmt: skip
    add("--overwrite_card", action="store_true", help="Replace the card on the Hub even if it was edited there.")
    add("--hub_token", default=None, help="Token for pushing. Defaults to the token stored by `hf auth login`.")
    add("--dry_run", action="store_true", help="Check everything that can be checked without a network, list the files "
        "that would be uploaded, and change nothing.")  # fmt: skip
    return parser


def check(args: argparse.Namespace) -> list[str]:
    """Check the flags and the folder before anything is written or sent. Returns the names of the files to publish.

    Raises:
        PublishError: the message names the flag or the file, and the fix.
    """
    check_repo_id(args.repo_id, "--repo_id")
    clean_token(args.hub_token)
    if args.measured is not None:
        read_measured(args.measured, "--measured got ")
    names = published_files(args.folder)
    for flag in ("measured", "license"):
        value = getattr(args, flag)
        if value is not None and not (args.folder / RUN_FILE).is_file():
            raise PublishError(
                f"--{flag} got {str(value)!r}: {args.folder} has no {RUN_FILE}, from which the card is made; edit "
                f"{CARD} yourself"
            )
    if args.measured is not None:
        files_to_keep(args.folder)
    if args.variant is not None:
        check_variant(args.folder, args.variant)
    return names


def run(args: argparse.Namespace) -> None:
    """Publish the run, or with `--dry_run` list the files that would be published.

    Raises:
        UserError: the run was not published.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    names = check(args)
    card = args.folder / CARD
    if args.dry_run:
        print(f"Would publish {len(set(names) | {CARD})} files of {args.folder} to {args.repo_id} ({args.revision}):")
        for name in names:
            print(f"  {name}  {(args.folder / name).stat().st_size / 1e6:,.3f} MB")
        if CARD not in names:
            print(f"  {CARD}  made from {RUN_FILE}")
        if args.variant is not None:
            print(f"  and the weights in {args.variant}")
        print(f"The card is {card}. Nothing was written or sent.")
        return
    try:
        if args.measured is not None:
            add_measured(args.folder, args.measured)
        if args.license is not None:
            set_license(args.folder, args.license)
        if args.variant is not None:
            add_variant(args.folder, args.variant)
    except OSError as error:
        raise PublishError(f"{args.folder} cannot be written to: {error}") from error
    done = publish(
        args.folder,
        args.repo_id,
        token=args.hub_token,
        private=args.private,
        branch=args.revision,
        overwrite_card=args.overwrite_card,
    )
    print(f"Published {len(done.files)} files to {done.repo_id} ({done.branch}), commit {done.commit}")
    print(f"The card is {card}" + (", but the edited one on the Hub was kept" if done.card_kept else ""))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process."""
    run_command(make_parser(), argv, run)
