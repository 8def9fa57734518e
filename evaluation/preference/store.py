"""The votes of a study, in SQLite: each once, and on the disk before the voter hears that it was taken.

A task is a pair of runs, a prompt and a question. Showing it to a voter makes an assignment: which image stands left is
drawn then and kept, so a reloaded page shows the same. A vote fills the assignment, once.
"""

import itertools
import json
import random
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError

QUESTIONS = ("quality", "adherence")
SIDES = ("left", "right")

SCHEMA = """
CREATE TABLE IF NOT EXISTS study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY, prompt INTEGER NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL, question TEXT NOT NULL,
    UNIQUE (prompt, first, second, question)
);
CREATE TABLE IF NOT EXISTS assignments (
    token TEXT PRIMARY KEY, voter TEXT NOT NULL, judge INTEGER NOT NULL DEFAULT 0,
    task INTEGER NOT NULL REFERENCES tasks (id),
    is_check INTEGER NOT NULL,          -- an attention check: the wrong side shows the right one's image, spoilt
    swapped INTEGER NOT NULL,           -- 1: the second run stands left; in a check, the spoilt image does
    shown_at REAL NOT NULL, choice TEXT CHECK (choice IN ('left', 'right')), voted_at REAL
);
CREATE UNIQUE INDEX IF NOT EXISTS once ON assignments (voter, task) WHERE NOT is_check;
CREATE UNIQUE INDEX IF NOT EXISTS one_open ON assignments (voter) WHERE choice IS NULL;
"""


@dataclass(frozen=True)
class Assignment:
    """What a voter sees.

    Attributes:
        token: secret name of the assignment.
        voter: who.
        prompt: index of the prompt.
        question: out of `QUESTIONS`.
        left, right: names of the runs whose images are shown; both the same in an attention check.
        spoilt: the side whose image is spoilt, in an attention check; else None.
    """

    token: str
    voter: str
    prompt: int
    question: str
    left: str
    right: str
    spoilt: str | None


class Store:
    """A study's file.

    Args:
        path: SQLite file; made if need be.
        study: JSON values that say what is compared: `runs` and `prompts_sha256`.
        num_prompts: prompts that every pair of runs is compared on.

    Raises:
        EvaluationError: the file holds another study.
    """

    def __init__(self, path: Path, study: dict[str, Any], num_prompts: int):
        self.lock = threading.Lock()
        self.connection = _connect(path)
        with self._transaction() as cursor:
            known = dict(cursor.execute("SELECT key, value FROM study"))
            wanted = {key: json.dumps(value) for key, value in {**study, "num_prompts": num_prompts}.items()}
            if known and known != wanted:
                changed = ", ".join(key for key in wanted if known.get(key) != wanted[key])
                raise EvaluationError(f"--study {path} holds another study (other {changed}); give another file.")
            cursor.executemany("INSERT OR IGNORE INTO study VALUES (?, ?)", wanted.items())
            pairs = itertools.combinations(study["runs"], 2)
            cursor.executemany(
                "INSERT OR IGNORE INTO tasks (prompt, first, second, question) VALUES (?, ?, ?, ?)",
                [(i, *pair, question) for pair in pairs for i in range(num_prompts) for question in QUESTIONS],
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        """One at a time in this process, and all or nothing."""
        with self.lock:
            cursor = self.connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
            except BaseException:
                self.connection.rollback()
                raise
            self.connection.commit()

    def assign(self, voter: str, votes_per_task: int, check_share: float) -> Assignment | None:
        """What `voter` is to answer next: what lies open, or something new; None when nothing is left.

        New is, with probability `check_share`, an attention check, else one of the tasks that fewest have voted on, at
        random, in random order of sides. A task is done with `votes_per_task` votes of people, and may get a few
        more from those who were shown it at the same time.
        """
        with self._transaction() as cursor:
            row = cursor.execute(
                "SELECT token FROM assignments WHERE voter = ? AND choice IS NULL", (voter,)
            ).fetchone()
            if row is None:
                task = self._next_task(cursor, voter, votes_per_task)
                if task is None:
                    return None
                is_check, swapped = random.random() < check_share, random.random() < 0.5
                row = (secrets.token_urlsafe(16),)
                cursor.execute(
                    "INSERT INTO assignments (token, voter, task, is_check, swapped, shown_at) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (*row, voter, task, is_check, swapped, time.time()),
                )
            return self._find(cursor, row[0])

    @staticmethod
    def _next_task(cursor: sqlite3.Cursor, voter: str, votes_per_task: int) -> int | None:
        row = cursor.execute(
            """SELECT tasks.id, COUNT(votes.token) AS votes FROM tasks
               LEFT JOIN assignments AS votes
                 ON votes.task = tasks.id AND NOT votes.is_check AND NOT votes.judge AND votes.choice IS NOT NULL
               WHERE tasks.id NOT IN (SELECT task FROM assignments WHERE voter = ? AND NOT is_check)
               GROUP BY tasks.id HAVING votes < ? ORDER BY votes, RANDOM() LIMIT 1""",
            (voter, votes_per_task),
        ).fetchone()
        return row and row[0]

    @staticmethod
    def _find(cursor: sqlite3.Cursor, token: str) -> Assignment | None:
        row = cursor.execute(
            "SELECT voter, prompt, question, first, second, is_check, swapped FROM assignments "
            "JOIN tasks ON tasks.id = task WHERE token = ?",
            (token,),
        ).fetchone()
        if row is None:
            return None
        voter, prompt, question, first, second, is_check, swapped = row
        if is_check:
            return Assignment(token, voter, prompt, question, first, first, "left" if swapped else "right")
        left, right = (second, first) if swapped else (first, second)
        return Assignment(token, voter, prompt, question, left, right, None)

    def find(self, token: str) -> Assignment | None:
        """The assignment of that name, if there is one."""
        with self._transaction() as cursor:
            return self._find(cursor, token)

    def vote(self, token: str, choice: str) -> bool:
        """Take a vote, `left` or `right`. Returns whether it counts: False if there was one, or no such assignment."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE assignments SET choice = ?, voted_at = ? WHERE token = ? AND choice IS NULL",
                (choice, time.time(), token),
            )
            return cursor.rowcount == 1

    def progress(self, voter: str) -> int:
        """How many votes `voter` has given."""
        with self._transaction() as cursor:
            query = "SELECT COUNT(*) FROM assignments WHERE voter = ? AND choice IS NOT NULL"
            return cursor.execute(query, (voter,)).fetchone()[0]

    def open_tasks(self, voter: str) -> list[tuple[int, int, str, str, str]]:
        """Tasks that `voter` has not voted on: `(id, prompt, first, second, question)`."""
        with self._transaction() as cursor:
            return cursor.execute(
                "SELECT * FROM tasks WHERE id NOT IN (SELECT task FROM assignments WHERE voter = ?)", (voter,)
            ).fetchall()

    def judge(self, voter: str, votes: list[tuple[int, str]]) -> None:
        """Take a judge's votes, `(task id, "left" for the first run or "right" for the second)`, all or none."""
        now = time.time()
        with self._transaction() as cursor:
            cursor.executemany(
                "INSERT OR IGNORE INTO assignments VALUES (?, ?, 1, ?, 0, 0, ?, ?, ?)",
                [(secrets.token_urlsafe(16), voter, task, now, choice, now) for task, choice in votes],
            )


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # WAL's default would lose the last votes with the power
        connection.executescript(SCHEMA)
    except sqlite3.Error as error:
        raise EvaluationError(f"--study {path}: cannot be opened as a study: {error}.") from error
    return connection


def read_study(path: Path) -> dict[str, Any]:
    """What a study compares: `runs`, `prompts_sha256`, `num_prompts`.

    Raises:
        EvaluationError: no such file.
    """
    if not path.is_file():
        raise EvaluationError(f"--study {path}: no such file; `serve` or `judge` makes one.")
    rows = _connect(path).execute("SELECT key, value FROM study")
    return {key: json.loads(value) for key, value in rows}


def read_votes(path: Path) -> list[dict[str, Any]]:
    """All votes given: `voter`, `judge`, `question`, `prompt`, `is_check`, `passed` (of a check), `winner`, `loser`."""
    rows = _connect(path).execute(
        "SELECT voter, judge, question, prompt, is_check, swapped, choice, first, second FROM assignments "
        "JOIN tasks ON tasks.id = task WHERE choice IS NOT NULL ORDER BY voted_at"
    )
    votes = []
    for voter, judge, question, prompt, is_check, swapped, choice, first, second in rows:
        chose_first = (choice == "left") != bool(swapped)  # in a check, the intact image
        winner, loser = (first, second) if chose_first else (second, first)
        votes.append(
            {"voter": voter, "judge": bool(judge), "question": question, "prompt": prompt, "is_check": bool(is_check),
             "passed": chose_first if is_check else None, "winner": winner, "loser": loser}
        )  # fmt: skip
    return votes
