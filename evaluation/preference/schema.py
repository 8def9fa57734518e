"""The SQLite tables of a study, and the opening of its file."""

import sqlite3
from pathlib import Path

from evaluation.errors import EvaluationError

BUSY_SECONDS = 5.0  # time that a request waits for a file that another program has locked
VERSION = 2

_ASSIGNMENTS = """
CREATE TABLE IF NOT EXISTS assignments (
    token TEXT PRIMARY KEY, voter TEXT NOT NULL, judge INTEGER NOT NULL DEFAULT 0,
    task INTEGER NOT NULL REFERENCES tasks (id),
    is_check INTEGER NOT NULL,          -- an attention check: the wrong side shows the right one's image, spoilt
    swapped INTEGER NOT NULL,           -- 1: the second run is on the left; in a check, the spoilt image is
    shown_at REAL NOT NULL, choice TEXT CHECK (choice IN ('left', 'right', 'tie')), voted_at REAL
)"""
_TABLES = (
    "CREATE TABLE IF NOT EXISTS study (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS tasks (
        id INTEGER PRIMARY KEY, prompt INTEGER NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL,
        question TEXT NOT NULL, UNIQUE (prompt, first, second, question)
    )""",
    # `participant` is the name in the link of a survey platform; it is not verified.
    """CREATE TABLE IF NOT EXISTS voters (
        id TEXT PRIMARY KEY, secret_sha256 TEXT NOT NULL UNIQUE, participant TEXT, joined_at REAL NOT NULL
    )""",
    _ASSIGNMENTS,
    "CREATE UNIQUE INDEX IF NOT EXISTS once ON assignments (voter, task) WHERE NOT is_check",
    "CREATE UNIQUE INDEX IF NOT EXISTS one_open ON assignments (voter) WHERE choice IS NULL",
)


def connect_study(path: Path, busy_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
    """Open the file of a study, and update a file of an earlier version.

    Args:
        path: SQLite file; made if it does not exist.
        busy_seconds: seconds that a statement waits for a lock of another program.

    Raises:
        EvaluationError: the file is no study, is locked, or is of a newer version.
    """
    try:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=busy_seconds)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # the default for WAL could lose the last votes in a power cut
        connection.execute("BEGIN IMMEDIATE")
        _make_tables(connection, path)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise EvaluationError(f"--study {path}: cannot be opened as a study: {error}.") from error
    return connection


def _make_tables(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise EvaluationError(f"--study {path}: a newer version of this program wrote the file (format {version}).")
    has_votes = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'assignments'").fetchone()
    is_old = has_votes and version < VERSION
    if is_old:  # its constraint does not allow ties, and SQLite cannot change a constraint in place
        connection.execute("ALTER TABLE assignments RENAME TO old_assignments")
        connection.execute("DROP INDEX once")
        connection.execute("DROP INDEX one_open")
    for statement in _TABLES:
        connection.execute(statement)
    if is_old:
        connection.execute("INSERT INTO assignments SELECT * FROM old_assignments")
        connection.execute("DROP TABLE old_assignments")
    connection.execute(f"PRAGMA user_version = {VERSION}")
