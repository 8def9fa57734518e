"""Votes are stored once, survive a kill and a lock, and attention checks are counted apart."""

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from evaluation.errors import EvaluationError
from evaluation.preference.schema import VERSION
from evaluation.preference.store import QUESTIONS, Store, StudyBusyError
from evaluation.preference.votes import read_study, read_votes

STUDY = {"runs": ["a", "b", "c"], "prompts_sha256": "0"}


def answer_all(store: Store, voter: str, votes_per_task: int = 9, check_share: float = 0.0) -> list:
    """Vote left until nothing is left. Returns what was shown."""
    shown = []
    while (assignment := store.assign(voter, votes_per_task, check_share)) is not None:
        shown.append(assignment)
        assert store.add_vote(voter, assignment.token, "left")
    return shown


def test_every_pair_prompt_and_question_once_a_voter(tmp_path):
    """Three pairs, two prompts, two questions: twelve tasks, in both orders of sides."""
    store = Store(tmp_path / "study.sqlite", STUDY, num_prompts=2)
    shown = answer_all(store, "ann") + answer_all(store, "bob")
    tasks = Counter((a.voter, a.prompt, a.question, frozenset((a.left, a.right))) for a in shown)
    assert len(tasks) == 2 * 3 * 2 * len(QUESTIONS)
    assert set(tasks.values()) == {1}
    assert {a.left < a.right for a in shown} == {True, False}
    assert all(a.spoilt is None for a in shown)


def test_the_winner_is_what_stood_on_the_chosen_side(tmp_path):
    store = Store(tmp_path / "study.sqlite", STUDY, num_prompts=2)
    shown = answer_all(store, "ann")
    votes = read_votes(tmp_path / "study.sqlite")
    assert [(v["winner"], v["loser"], v["prompt"], v["question"]) for v in votes] == [
        (a.left, a.right, a.prompt, a.question) for a in shown
    ]


def test_a_reloaded_page_shows_the_same(tmp_path):
    store = Store(tmp_path / "study.sqlite", STUDY, num_prompts=3)
    first = store.assign("ann", 9, 0.5)
    assert [store.assign("ann", 9, 0.5) for _ in range(5)] == [first] * 5
    assert store.assign("bob", 9, 0.5).token != first.token


def test_a_vote_counts_once_even_from_many_threads(tmp_path):
    store = Store(tmp_path / "study.sqlite", STUDY, num_prompts=1)
    token = store.assign("ann", 9, 0.0).token
    counted = []
    threads = [
        threading.Thread(target=lambda s=s: counted.append(store.add_vote("ann", token, s)))
        for s in ["left", "right"] * 8
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counted) == [False] * 15 + [True]
    assert not store.add_vote("ann", "no such token", "left")
    assert len(read_votes(tmp_path / "study.sqlite")) == 1


def test_votes_spread_over_the_tasks(tmp_path):
    """The second voter is asked first what nobody has voted on; what has its votes is not asked again."""
    store = Store(tmp_path / "study.sqlite", STUDY, num_prompts=2)
    for _ in range(7):
        store.add_vote("ann", store.assign("ann", 1, 0.0).token, "left")
    assert len(answer_all(store, "bob", votes_per_task=1)) == 12 - 7
    assert store.assign("cid", 1, 0.0) is None


def test_attention_checks_are_graded_and_not_counted_as_games(tmp_path):
    """Half checks: who always takes the intact side passes all, who always takes left fails about half."""
    path = tmp_path / "study.sqlite"
    store = Store(path, STUDY, num_prompts=4)
    while (a := store.assign("careful", 9, 0.5)) is not None:
        assert a.spoilt is None or a.left == a.right
        store.add_vote("careful", a.token, "right" if a.spoilt == "left" else "left")
    answer_all(store, "careless", check_share=0.5)
    passed = {voter: [v["passed"] for v in read_votes(path) if v["is_check"] and v["voter"] == voter]
              for voter in ("careful", "careless")}  # fmt: skip
    assert len(passed["careful"]) > 3
    assert all(passed["careful"])
    assert 0 < sum(passed["careless"]) < len(passed["careless"])
    assert sum(not v["is_check"] for v in read_votes(path)) == 2 * 24


def test_another_study_is_refused(tmp_path):
    path = tmp_path / "study.sqlite"
    Store(path, STUDY, num_prompts=2)
    Store(path, STUDY, num_prompts=2)  # the same goes on
    with pytest.raises(EvaluationError, match="num_prompts"):
        Store(path, STUDY, num_prompts=3)
    with pytest.raises(EvaluationError, match="runs"):
        Store(path, STUDY | {"runs": ["a", "d"]}, num_prompts=2)
    assert read_study(path)["runs"] == ["a", "b", "c"]


def test_files_that_hold_no_study(tmp_path):
    (tmp_path / "text").write_text("no database, but long enough to be read as one" * 40)
    with pytest.raises(EvaluationError, match="--study"):
        Store(tmp_path / "text", STUDY, num_prompts=2)
    with pytest.raises(EvaluationError, match="no such file"):
        read_study(tmp_path / "absent")


VOTE_FOREVER = """
import sys
from evaluation.preference.store import Store
store = Store(sys.argv[1], {"runs": ["a", "b"], "prompts_sha256": "0"}, num_prompts=5000)
while True:
    assignment = store.assign("ann", 9, 0.1)
    assert store.add_vote("ann", assignment.token, "left")
    print(assignment.token, flush=True)  # what the voter hears
"""


def test_kill_loses_no_acknowledged_vote(tmp_path):
    """kill -9 in the midst of voting: all that was acknowledged is there, at most one more, and voting goes on."""
    path = tmp_path / "study.sqlite"
    process = subprocess.Popen([sys.executable, "-c", VOTE_FOREVER, str(path)], stdout=subprocess.PIPE, text=True)
    heard = [process.stdout.readline().strip() for _ in range(25)]
    process.send_signal(signal.SIGKILL)
    heard += process.stdout.read().split()
    process.wait()
    process.stdout.close()
    votes = read_votes(path)
    assert len(votes) - len(heard) in (0, 1)
    store = Store(path, {"runs": ["a", "b"], "prompts_sha256": "0"}, num_prompts=5000)
    assert not any(store.add_vote("ann", token, "right") for token in heard)
    assert store.add_vote("ann", store.assign("ann", 9, 0.0).token, "left")


def test_nobody_votes_on_what_another_was_shown(tmp_path):
    store = Store(tmp_path / "study.sqlite", STUDY, num_prompts=2)
    token = store.assign("ann", 9, 0.0).token
    assert not store.add_vote("bob", token, "left")
    assert store.add_vote("ann", token, "left")


def test_a_voter_is_known_by_a_secret_that_the_file_does_not_hold(tmp_path):
    path = tmp_path / "study.sqlite"
    store = Store(path, STUDY, num_prompts=2)
    ann, bob = store.add_voter("ann"), store.add_voter("ann")  # what the link says identifies nobody
    assert store.find_voter(ann) != store.find_voter(bob)
    assert store.find_voter(ann) == Store(path, STUDY, num_prompts=2).find_voter(ann)
    assert store.find_voter("made up") is None
    store.add_vote(store.find_voter(ann), store.assign(store.find_voter(ann), 9, 0.0).token, "left")
    assert [(v["voter"], v["participant"]) for v in read_votes(path)] == [(store.find_voter(ann), "ann")]
    assert not [file for file in tmp_path.iterdir() if ann.encode() in file.read_bytes()]


def test_a_tie_is_a_vote_and_fails_a_check(tmp_path):
    path = tmp_path / "study.sqlite"
    store = Store(path, STUDY, num_prompts=4)
    while (assignment := store.assign("ann", 9, 0.5)) is not None:
        assert store.add_vote("ann", assignment.token, "tie")
    votes = read_votes(path)
    assert all(vote["tie"] for vote in votes)
    assert {vote["passed"] for vote in votes} == {None, False}


def test_progress_counts_what_is_left_for_the_voter(tmp_path):
    """Checks do not count; a task that others have done with is no longer asked for."""
    store = Store(tmp_path / "study.sqlite", STUDY, num_prompts=2)
    assert store.progress("ann", 1) == (0, 12)
    assignment = store.assign("ann", 1, 0.0)
    assert store.progress("ann", 1) == (0, 12)
    store.add_vote("ann", assignment.token, "left")
    assert (store.progress("ann", 1), store.progress("bob", 1)) == ((1, 12), (0, 11))
    check = store.assign("ann", 1, 1.0)
    store.add_vote("ann", check.token, "left")
    assert store.progress("ann", 1) == (1, 12)


def test_a_locked_file_is_reported_in_bounded_time_and_loses_no_vote(tmp_path):
    """Another program holds the file: no vote is taken, none is lost, and the same vote counts afterwards."""
    path = tmp_path / "study.sqlite"
    store = Store(path, STUDY, num_prompts=2, busy_seconds=0.2)
    token = store.assign("ann", 9, 0.0).token
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    with pytest.raises(StudyBusyError):
        store.add_vote("ann", token, "left")
    assert time.monotonic() - start < 5
    other.execute("ROLLBACK")
    other.close()
    assert read_votes(path) == []
    assert store.add_vote("ann", token, "left")


OLD_SCHEMA = """
CREATE TABLE study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY, prompt INTEGER NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL, question TEXT NOT NULL,
    UNIQUE (prompt, first, second, question)
);
CREATE TABLE assignments (
    token TEXT PRIMARY KEY, voter TEXT NOT NULL, judge INTEGER NOT NULL DEFAULT 0,
    task INTEGER NOT NULL REFERENCES tasks (id), is_check INTEGER NOT NULL, swapped INTEGER NOT NULL,
    shown_at REAL NOT NULL, choice TEXT CHECK (choice IN ('left', 'right')), voted_at REAL
);
CREATE UNIQUE INDEX once ON assignments (voter, task) WHERE NOT is_check;
CREATE UNIQUE INDEX one_open ON assignments (voter) WHERE choice IS NULL;
INSERT INTO tasks VALUES (1, 0, 'a', 'b', 'quality');
INSERT INTO assignments VALUES ('t', 'ann', 0, 1, 0, 1, 0, 'left', 1);
"""


def test_a_study_from_before_ties_goes_on(tmp_path):
    """Its votes stay, and ties are taken from now on."""
    path = tmp_path / "study.sqlite"
    old = sqlite3.connect(path)
    old.executescript(OLD_SCHEMA)
    old.close()
    store = Store(path, STUDY, num_prompts=2)
    assert [(v["voter"], v["winner"], v["tie"]) for v in read_votes(path)] == [("ann", "b", False)]
    assert store.add_vote("ann", store.assign("ann", 9, 0.0).token, "tie")
    Store(path, STUDY, num_prompts=2)
    assert [v["tie"] for v in read_votes(path)] == [False, True]
    store.connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(EvaluationError, match="newer version"):
        read_votes(path)
