"""Store of the votes of a study in SQLite: each vote is counted once, and on the disk before it is confirmed.

A task is a pair of runs, a prompt and a question. When it is shown to a voter, an assignment is created with a random
order of the two images, so that a reloaded page shows the same. Each assignment takes one vote.
"""

import hashlib
import itertools
import json
import random
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.preference.schema import BUSY_SECONDS, connect_study

QUESTIONS = ("quality", "adherence")
SIDES = ("left", "right")
TIE = "tie"


class StudyBusyError(Exception):
    """The study's file is locked by another program. Nothing was read or written; the request can be repeated."""


def _is_busy(error: sqlite3.OperationalError) -> bool:
    """Whether another program has locked the file."""
    if sys.version_info < (3, 11):  # where an error has no code
        return "locked" in str(error)
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)  # without extended bits


@dataclass(frozen=True)
class Assignment:
    """A pair of images that is shown to a voter.

    Attributes:
        token: secret name of the assignment.
        voter: id of the voter.
        prompt: index of the prompt.
        question: one of `QUESTIONS`.
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
    """The file of a study.

    Args:
        path: SQLite file; made if it does not exist.
        study: JSON values that say what is compared: `runs` and `prompts_sha256`.
        num_prompts: prompts that every pair of runs is compared on.
        busy_seconds: seconds that a request waits for a lock before it raises a `StudyBusyError`.

    Raises:
        EvaluationError: the file holds another study.
    """

    def __init__(self, path: Path, study: dict[str, Any], num_prompts: int, busy_seconds: float = BUSY_SECONDS):
        self.lock = threading.Lock()
        self.busy_seconds = busy_seconds
        self.connection = connect_study(path, busy_seconds)
        wanted = {key: json.dumps(value) for key, value in {**study, "num_prompts": num_prompts}.items()}
        self.fingerprint = hashlib.sha256(json.dumps(sorted(wanted.items())).encode()).hexdigest()
        with self._transaction() as cursor:
            known = dict(cursor.execute("SELECT key, value FROM study"))
            if known and known != wanted:
                changed = ", ".join(key for key in wanted if known.get(key) != wanted[key])
                raise EvaluationError(f"--study {path} contains another study (other {changed}); give another file.")
            cursor.executemany("INSERT OR IGNORE INTO study VALUES (?, ?)", wanted.items())
            pairs = itertools.combinations(study["runs"], 2)
            cursor.executemany(
                "INSERT OR IGNORE INTO tasks (prompt, first, second, question) VALUES (?, ?, ?, ?)",
                [(i, *pair, question) for pair in pairs for i in range(num_prompts) for question in QUESTIONS],
            )

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Cursor]:
        """Run one transaction at a time in this process. `DEFERRED` can read while another program writes."""
        if not self.lock.acquire(timeout=self.busy_seconds):
            raise StudyBusyError
        try:
            cursor = self.connection.cursor()
            cursor.execute(f"BEGIN {kind}")
            yield cursor
            cursor.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if _is_busy(error):
                raise StudyBusyError from error
            raise
        finally:
            if self.connection.in_transaction:
                self.connection.rollback()
            self.lock.release()

    def add_voter(self, participant: str | None) -> str:
        """Add a voter, and return the secret that identifies the voter. The file only stores its hash.

        Args:
            participant: name of the voter in the link to the page, for the person who runs the study.
        """
        secret = secrets.token_urlsafe(32)
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO voters VALUES (?, ?, ?, ?)",
                (secrets.token_hex(12), _hash(secret), participant, time.time()),
            )
        return secret

    def find_voter(self, secret: str) -> str | None:
        """Id of the voter with this secret; None if there is none."""
        with self._transaction("DEFERRED") as cursor:
            row = cursor.execute("SELECT id FROM voters WHERE secret_sha256 = ?", (_hash(secret),)).fetchone()
            return row and row[0]

    def assign(self, voter: str, votes_per_task: int, check_share: float) -> Assignment | None:
        """The next assignment of `voter`: the open one if there is one, else a new one; None if there are no more.

        A new one is, with probability `check_share`, an attention check, else one of the tasks that fewest have voted
        on, at random, in random order of sides. A task is done with `votes_per_task` votes of people, and may get a
        few more from those who were shown it at the same time.
        """
        with self._transaction() as cursor:
            row = cursor.execute(
                "SELECT token FROM assignments WHERE voter = ? AND choice IS NULL", (voter,)
            ).fetchone()
            if row is None:
                tasks = self._remaining_tasks(cursor, voter, votes_per_task)
                if not tasks:
                    return None
                is_check, swapped = random.random() < check_share, random.random() < 0.5
                row = (secrets.token_urlsafe(16),)
                cursor.execute(
                    "INSERT INTO assignments (token, voter, task, is_check, swapped, shown_at) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (*row, voter, tasks[0], is_check, swapped, time.time()),
                )
            return self._find(cursor, row[0])

    @staticmethod
    def _remaining_tasks(cursor: sqlite3.Cursor, voter: str, votes_per_task: int) -> list[int]:
        """Tasks that `voter` has not seen and that need more votes, ordered by number of votes and then at random."""
        rows = cursor.execute(
            """SELECT tasks.id, COUNT(votes.token) AS votes FROM tasks
               LEFT JOIN assignments AS votes
                 ON votes.task = tasks.id AND NOT votes.is_check AND NOT votes.judge AND votes.choice IS NOT NULL
               WHERE tasks.id NOT IN (SELECT task FROM assignments WHERE voter = ? AND NOT is_check)
               GROUP BY tasks.id HAVING votes < ? ORDER BY votes, RANDOM()""",
            (voter, votes_per_task),
        )
        return [task for task, _ in rows]

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

    def find_assignment(self, token: str) -> Assignment | None:
        """The assignment with this token, or None."""
        with self._transaction("DEFERRED") as cursor:
            return self._find(cursor, token)

    def add_vote(self, voter: str, token: str, choice: str) -> bool:
        """Record a vote on an assignment of `voter`: `left`, `right` or `tie`.

        Returns:
            Whether it counts: False if the assignment has a vote already, is another voter's, or does not exist.

        Raises:
            StudyBusyError: the file is locked; the vote was not taken.
        """
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE assignments SET choice = ?, voted_at = ? WHERE token = ? AND voter = ? AND choice IS NULL",
                (choice, time.time(), token, voter),
            )
            return cursor.rowcount == 1

    def progress(self, voter: str, votes_per_task: int) -> tuple[int, int]:
        """Number of tasks that `voter` has voted on, and this number plus the remaining tasks; without checks."""
        with self._transaction("DEFERRED") as cursor:
            query = "SELECT COUNT(*), COUNT(choice) FROM assignments WHERE voter = ? AND NOT is_check"
            shown, done = cursor.execute(query, (voter,)).fetchone()
            return done, shown + len(self._remaining_tasks(cursor, voter, votes_per_task))

    def unvoted_tasks(self, voter: str) -> list[tuple[int, int, str, str, str]]:
        """Tasks that `voter` has not voted on: `(id, prompt, first, second, question)`."""
        with self._transaction("DEFERRED") as cursor:
            return cursor.execute(
                "SELECT * FROM tasks WHERE id NOT IN (SELECT task FROM assignments WHERE voter = ?)", (voter,)
            ).fetchall()

    def add_judge_votes(self, judge: str, votes: list[tuple[int, str]]) -> None:
        """Record a judge's votes, `(task id, "left" for the first run or "right" for the second)`, atomically."""
        now = time.time()
        with self._transaction() as cursor:
            cursor.executemany(
                "INSERT OR IGNORE INTO assignments VALUES (?, ?, 1, ?, 0, 0, ?, ?, ?)",
                [(secrets.token_urlsafe(16), judge, task, now, choice, now) for task, choice in votes],
            )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
