"""Summary of votes: the counted votes, ELO, win rates, and their Markdown tables."""

from collections import defaultdict
from typing import Any

import numpy as np

from evaluation.errors import EvaluationError
from evaluation.preference.elo import elo_interval, elo_scores, tie_counts, win_counts, win_rate
from training.markdown import escape_markdown, markdown_table

Votes = list[dict[str, Any]]


def count_checks(votes: Votes) -> dict[str, tuple[int, int]]:
    """Number of attention checks passed and seen, for each voter."""
    checks: dict[str, list[bool]] = defaultdict(list)
    for vote in votes:
        checks[vote["voter"]] += [vote["passed"]] if vote["is_check"] else []
    return {voter: (sum(passed), len(passed)) for voter, passed in checks.items()}


def counted_votes(votes: Votes, voters: str, min_attention: float) -> Votes:
    """The votes of attentive `people`, or of `judges`.

    Raises:
        EvaluationError: there are none.
    """
    checks = count_checks(votes)
    attentive = {voter for voter, (passed, seen) in checks.items() if passed >= min_attention * seen}
    counted = [
        vote
        for vote in votes
        if not vote["is_check"] and vote["judge"] == (voters == "judges") and vote["voter"] in attentive
    ]
    if not counted:
        raise EvaluationError(
            f"--voters {voters}: none of {len(votes)} votes is counted. --voters people counts people who passed the "
            f"fraction --min_attention {min_attention} of their checks, --voters judges counts models."
        )
    return counted


def summarize(votes: Votes, runs: list[str], rounds: int, seed: int) -> dict[str, Any]:
    """ELO by question and its mean over questions, and win rates of all pairs.

    The paper reports the mean of both questions' scores (section 4.2). A question without votes is left out.
    """
    index = {run: i for i, run in enumerate(runs)}
    questions: dict[str, Any] = {}
    for question in sorted({vote["question"] for vote in votes}):
        games = np.array(
            [[index[v["winner"]], index[v["loser"]], v["tie"]] for v in votes if v["question"] == question]
        )
        questions[question] = {
            "votes": len(games),
            "elo": dict(zip(runs, elo_scores(games, len(runs), rounds, seed).tolist())),
            "interval": dict(zip(runs, elo_interval(games, len(runs), rounds, seed).tolist())),
            "wins": _win_rates(win_counts(games, len(runs)), tie_counts(games, len(runs)), runs),
        }
    means = {run: float(np.mean([part["elo"][run] for part in questions.values()])) for run in runs}
    return {
        "definition": f"ELO: start 1000, K = 1, mean over {rounds} shuffled orders and over {' and '.join(questions)}",
        "elo": {run: {"mean": means[run]} for run in runs},
        "questions": questions,
    }


def _win_rates(counts: np.ndarray, ties: np.ndarray, runs: list[str]) -> list[dict[str, Any]]:
    """For each compared pair: fraction of the decided votes, its interval, and the number of ties."""
    rates = []
    for i, run in enumerate(runs):
        for j, other in enumerate(runs):
            decided, tied = int(counts[i, j] + counts[j, i]), int(ties[i, j])
            if i < j and decided + tied:
                share, *interval = win_rate(int(counts[i, j]), decided) if decided else (None, None, None)
                rates.append({"run": run, "against": other, "share": share, "interval": interval,
                              "votes": decided + tied, "ties": tied})  # fmt: skip
    return rates


def describe_voters(votes: Votes, voters: list[str]) -> list[str]:
    """Ids of voters, each with the name from the link, if any."""
    participants = {vote["voter"]: vote["participant"] for vote in votes}
    return [f"{voter} ({participants[voter]})" if participants[voter] else voter for voter in sorted(voters)]


def preference_markdown(summary: dict[str, Any]) -> str:
    """Two Markdown tables: ELO, best first, and win rates among the decided votes with 95 % intervals."""
    questions = summary["questions"]
    ranked = sorted(summary["elo"], key=lambda run: -summary["elo"][run]["mean"])
    lines = []
    for run in ranked:
        by_question = [
            f"{part['elo'][run]:.1f} [{part['interval'][run][0]:.1f}, {part['interval'][run][1]:.1f}]"
            for part in questions.values()
        ]
        lines.append([escape_markdown(run), f"{summary['elo'][run]['mean']:.1f}", *by_question])
    wins = []
    for question, part in questions.items():
        for pair in part["wins"]:
            decided = pair["share"] is not None
            share, (low, high) = pair["share"], pair["interval"]
            printed = [f"{share:.1%}", f"{low:.1%} to {high:.1%}"] if decided else ["-", "-"]
            names = [escape_markdown(pair[key]) for key in ("run", "against")]
            wins.append([question, *names, *printed, str(pair["ties"]), str(pair["votes"])])
    elo_table = markdown_table(["run", "ELO", *questions], lines)
    wins_head = ["question", "run", "against", "wins", "95 %", "ties", "votes"]
    return f"{elo_table}\n{markdown_table(wins_head, wins, text_columns=3)}"
