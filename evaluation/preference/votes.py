"""Reading of a study's settings and votes."""

import json
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.preference.schema import connect_study
from evaluation.preference.store import TIE


def read_study(path: Path) -> dict[str, Any]:
    """Read the settings of a study: `runs`, `prompts_sha256`, `num_prompts`.

    Raises:
        EvaluationError: no such file.
    """
    if not path.is_file():
        raise EvaluationError(f"--study {path}: there is no such file; `serve` or `judge` creates one.")
    rows = connect_study(path).execute("SELECT key, value FROM study")
    return {key: json.loads(value) for key, value in rows}


def read_votes(path: Path) -> list[dict[str, Any]]:
    """Read all votes in the order in which they were given.

    Returns:
        Each vote's `voter`, `participant` (the name in the link, or None), `judge`, `question`, `prompt`, `is_check`,
        `passed` (of a check, else None), `tie`, `winner` and `loser`; in a tie these two are the pair in any order.
    """
    rows = connect_study(path).execute(
        "SELECT voter, participant, judge, question, prompt, is_check, swapped, choice, first, second FROM assignments "
        "JOIN tasks ON tasks.id = task LEFT JOIN voters ON voters.id = voter WHERE choice IS NOT NULL ORDER BY voted_at"
    )
    votes = []
    for voter, participant, judge, question, prompt, is_check, swapped, choice, first, second in rows:
        chose_first = (choice == "left") != bool(swapped)  # in a check, the intact image
        winner, loser = (first, second) if chose_first else (second, first)
        tie = choice == TIE
        votes.append(
            {"voter": voter, "participant": participant, "judge": bool(judge), "question": question, "prompt": prompt,
             "is_check": bool(is_check), "passed": chose_first and not tie if is_check else None, "tie": tie,
             "winner": winner, "loser": loser}
        )  # fmt: skip
    return votes
