"""From votes to figures: whose votes count, ELO, win rates, and the Markdown of both."""

from collections import defaultdict
from typing import Any

import numpy as np

from evaluation.errors import EvaluationError
from evaluation.preference.elo import elo, elo_interval, win_counts, win_rate

Votes = list[dict[str, Any]]


def count_checks(votes: Votes) -> dict[str, tuple[int, int]]:
    """Attention checks passed and seen, by voter; everybody who voted is in it."""
    checks: dict[str, list[bool]] = defaultdict(list)
    for vote in votes:
        checks[vote["voter"]] += [vote["passed"]] if vote["is_check"] else []
    return {voter: (sum(passed), len(passed)) for voter, passed in checks.items()}


def counted_votes(votes: Votes, voters: str, min_attention: float) -> Votes:
    """Votes of the attentive `people`, or of `judges`.

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
            f"--voters {voters}: none of {len(votes)} votes counts. People count with --voters people if they passed "
            f"--min_attention {min_attention} of their checks, models with --voters judges."
        )
    return counted


def summarize(votes: Votes, runs: list[str], rounds: int, seed: int) -> dict[str, Any]:
    """ELO by question and its mean over questions, and win rates of every pair.

    The paper reports the mean of both questions' scores (section 4.2). A question without votes is left out.
    """
    index = {run: i for i, run in enumerate(runs)}
    questions: dict[str, Any] = {}
    for question in sorted({vote["question"] for vote in votes}):
        games = np.array([[index[v["winner"]], index[v["loser"]]] for v in votes if v["question"] == question])
        questions[question] = {
            "votes": len(games),
            "elo": dict(zip(runs, elo(games, len(runs), rounds, seed).tolist())),
            "interval": dict(zip(runs, elo_interval(games, len(runs), rounds, seed).tolist())),
            "wins": _win_rates(win_counts(games, len(runs)), runs),
        }
    means = {run: float(np.mean([part["elo"][run] for part in questions.values()])) for run in runs}
    return {
        "definition": f"ELO: start 1000, K = 1, mean over {rounds} shuffled orders and over {' and '.join(questions)}",
        "elo": {run: {"mean": means[run]} for run in runs},
        "questions": questions,
    }


def _win_rates(counts: np.ndarray, runs: list[str]) -> list[dict[str, Any]]:
    rates = []
    for i, run in enumerate(runs):
        for j, other in enumerate(runs):
            total = int(counts[i, j] + counts[j, i])
            if i < j and total:
                share, low, high = win_rate(int(counts[i, j]), total)
                rates.append({"run": run, "against": other, "share": share, "interval": [low, high], "votes": total})
    return rates


def markdown(summary: dict[str, Any]) -> str:
    """Two tables: ELO, best first, and win rates with 95 % intervals."""
    questions = summary["questions"]
    ranked = sorted(summary["elo"], key=lambda run: -summary["elo"][run]["mean"])
    lines = [["run", "ELO", *questions], ["---", *["--:"] * (len(questions) + 1)]]
    for run in ranked:
        by_question = [
            f"{part['elo'][run]:.1f} [{part['interval'][run][0]:.1f}, {part['interval'][run][1]:.1f}]"
            for part in questions.values()
        ]
        lines.append([run, f"{summary['elo'][run]['mean']:.1f}", *by_question])
    wins = [["question", "run", "against", "wins", "95 %", "votes"], ["---", "---", "---", "--:", "--:", "--:"]]
    for question, part in questions.items():
        for pair in part["wins"]:
            low, high = pair["interval"]
            interval = f"{low:.1%} to {high:.1%}"
            wins.append([question, pair["run"], pair["against"], f"{pair['share']:.1%}", interval, str(pair["votes"])])
    return "\n\n".join("\n".join("| " + " | ".join(line) + " |" for line in table) for table in (lines, wins)) + "\n"
