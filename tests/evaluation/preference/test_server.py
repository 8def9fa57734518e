"""The server by HTTP: blind, each vote once and by whom it was asked of, and an answer to whatever is sent."""

import http.client
import io
import json
import socket
import sqlite3
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.preference.app import spoil_image
from evaluation.preference.server import StudyServer, choose_hosts
from evaluation.preference.votes import read_votes
from tests.evaluation.preference.serving import serving
from tests.evaluation.run_folders import PROMPTS, make_run


@dataclass
class Client:
    """A browser: keeps cookies, and opens the page before it asks for anything."""

    port: int
    query: str = ""
    cookies: dict[str, str] = field(default_factory=dict)

    def send(self, method: str, path: str, body=None, kind: str = "application/json", **headers) -> tuple[int, bytes]:
        """Status and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {"Content-Type": kind, "Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items()), **headers}
        connection.request(method, path + self.query, body, headers)
        answer = connection.getresponse()
        self.headers = str(answer.headers)
        for cookie in answer.headers.get_all("Set-Cookie", []):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        content = answer.read()
        connection.close()
        return answer.status, content

    def open(self) -> "Client":
        assert self.send("GET", "/")[0] == 200
        return self

    def task(self) -> dict:
        status, body = self.send("GET", "/next")
        assert status == 200
        return json.loads(body)

    def vote(self, token: str, choice: str) -> int:
        return self.send("POST", "/vote", json.dumps({"token": token, "choice": choice}))[0]


@pytest.fixture
def study(tmp_path):
    """A server over a dark and a bright run, half of what it shows being attention checks. Port and file."""
    runs = [make_run(tmp_path / "secret-dark", 60), make_run(tmp_path / "secret-bright", 190)]
    with serving(tmp_path / "study.sqlite", runs, check_share=0.5, busy_seconds=0.3) as port:
        yield port, tmp_path / "study.sqlite"


def brightness(png: bytes) -> tuple[float, int]:
    """Mean, and number of different colours."""
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    return pixels.mean(), len(np.unique(pixels.reshape(-1, 3), axis=0))


def test_a_whole_study_by_a_voter_who_likes_bright_images(study):
    """Every vote counts for the run whose picture was taken; checks show a run beside its own spoilt copy."""
    port, path = study
    ann = Client(port, "?voter=ann").open()
    prompts, tokens, progress = set(), [], []
    while (task := ann.task())["token"]:
        tokens.append(task["token"])
        progress.append(task["done"])
        assert task["total"] == 2 * len(PROMPTS)
        assert (task["prompt"] is None) == ("text" not in task["question"])  # quality is judged without the prompt
        prompts |= {task["prompt"]}
        seen = {side: brightness(ann.send("GET", f"/image/{task['token']}/{side}")[1]) for side in ("left", "right")}
        spoilt = [side for side, (_, colours) in seen.items() if colours <= 16]
        assert ann.vote(task["token"], max(seen, key=lambda side: (side not in spoilt, seen[side][0]))) == 200
    votes = read_votes(path)
    games = [vote for vote in votes if not vote["is_check"]]
    assert len(games) == 2 * len(PROMPTS) == task["done"]
    assert {vote["winner"] for vote in games} == {"secret-bright"}
    assert {vote["participant"] for vote in games} == {"ann"}
    assert all(vote["passed"] for vote in votes if vote["is_check"])
    assert len(games) < len(votes) == len(tokens)
    assert sorted(set(progress)) == list(range(len(games)))
    assert prompts == {None, *PROMPTS}


def test_answers_do_not_say_which_run_is_which(study):
    ann = Client(study[0])
    page = ann.send("GET", "/")[1]
    task = ann.send("GET", "/next")[1]
    image = ann.send("GET", f"/image/{json.loads(task)['token']}/left")[1]
    assert b"secret" not in task + page + image
    assert "secret" not in ann.headers


def test_the_page_needs_nothing_from_elsewhere(study):
    page = Client(study[0]).send("GET", "/")[1].decode()
    assert "://" not in page
    assert "Which image" in page


def test_voters_cannot_act_for_one_another(study):
    """Not under another's name, not on another's task, not without a cookie of the server's own making."""
    port, path = study
    ann, bob = Client(port, "?voter=ann").open(), Client(port, "?voter=ann").open()
    token = ann.task()["token"]
    assert bob.vote(token, "left") == 409
    assert bob.send("GET", f"/image/{token}/left")[0] == 404
    assert bob.task()["token"] != token
    stranger = Client(port, "?voter=ann")
    assert stranger.send("GET", "/next")[0] == 401
    assert stranger.send("GET", f"/image/{token}/left")[0] == 401
    assert stranger.vote(token, "left") == 401
    forged = Client(port, "?voter=ann", dict.fromkeys(ann.cookies, "forged"))
    assert forged.vote(token, "left") == 401
    assert read_votes(path) == []
    assert ann.vote(token, "left") == 200
    assert bob.vote(bob.task()["token"], "tie") == 200
    assert len({vote["voter"] for vote in read_votes(path)}) == 2


def test_a_browser_keeps_its_voter_and_keeps_two_apart(study):
    """The page again is the same voter; another name in the address of one browser is another voter."""
    ann = Client(study[0], "?voter=ann").open()
    token, cookies = ann.task()["token"], dict(ann.cookies)
    assert ann.open().cookies == cookies
    ann.query = "?voter=bob"
    assert ann.open().task()["token"] != token
    ann.query = "?voter=ann"
    assert ann.open().task()["token"] == token
    assert "HttpOnly" not in ann.headers  # no cookie is set again
    assert "HttpOnly" in str(Client(study[0]).open().headers)


def test_votes_count_once_and_nonsense_not_at_all(study):
    port, path = study
    ann = Client(port).open()
    token = ann.task()["token"]
    vote = json.dumps({"token": token, "choice": "left"})
    for status, body, kind in (
        (415, vote, "text/plain"),  # what a form of another site could send
        (400, b"[1]", "application/json"),
        (400, b"no json", "application/json"),
        (400, b"\xff\xfe\x00", "application/json"),
        (400, b"[" * 4000, "application/json"),
        (400, b"", "application/json"),
        (400, json.dumps({"token": token, "choice": "both"}), "application/json"),
        (400, json.dumps({"token": token, "choice": ["left"]}), "application/json"),
        (400, json.dumps({"token": token, "choice": "\udcff"}), "application/json"),
        (400, json.dumps({"token": [token], "choice": "left"}), "application/json"),
        (400, b'{"token": "\\ud800", "choice": "left"}', "application/json"),
        (400, json.dumps({"token": "a" * 99, "choice": "left"}), "application/json"),
        (413, b" " * 5000, "application/json"),
        (413, b" " * 3_000_000, "application/json"),
    ):
        assert ann.send("POST", "/vote", body, kind)[0] == status, body[:40]
    assert ann.send("POST", "/elsewhere", vote)[0] == 404
    assert ann.send("GET", "/vote")[0] == 405
    assert read_votes(path) == []
    assert [ann.vote(token, "left") for _ in range(3)] == [200, 409, 409]
    assert len(read_votes(path)) == 1


def test_a_locked_study_is_503_soon_and_the_vote_counts_later(study):
    port, path = study
    ann = Client(port).open()
    token = ann.task()["token"]
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    assert ann.vote(token, "left") == 503
    assert "retry-after: 2" in ann.headers.lower()
    assert time.monotonic() - start < 5
    other.execute("ROLLBACK")
    other.close()
    assert ann.vote(token, "left") == 200
    assert len(read_votes(path)) == 1


@pytest.mark.parametrize(
    "query", ["?voter=", "?voter=a%20b", "?voter=judge:x", "?voter=%ed%a0%80", "?voter=" + 129 * "a"]
)
def test_what_a_link_says_of_a_voter_is_a_plain_name(study, query):
    assert Client(study[0], query).send("GET", "/")[0] == 400


@pytest.mark.parametrize(
    "path", ["/image/x/left", "/image/x/run", "/image/%ed%a0%80/left", "/../run.json", "/study.sqlite", "/style.css"]
)
def test_no_file_is_served(study, path):
    assert Client(study[0]).open().send("GET", path)[0] == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:{port}", 200), ("localhost", 200), ("[::1]:80", 200), ("rebound.example", 400), ("", 400)],
)
def test_only_names_of_this_server_are_answered(study, host, status):
    """A page of another site cannot point its own name here and read the study."""
    assert Client(study[0]).send("GET", "/", Host=host.format(port=study[0]))[0] == status


def test_names_that_are_allowed(monkeypatch):
    monkeypatch.setattr("evaluation.preference.server.own_address", lambda: "127.0.0.1")  # tests ask no network
    assert choose_hosts("127.0.0.1", ["Votes.Example"])[-1] == "votes.example"
    assert socket.gethostname().lower() in choose_hosts("0.0.0.0")
    assert "[fe80::1]" in choose_hosts("fe80::1")
    assert "*" not in choose_hosts("0.0.0.0")


def test_a_port_in_use_is_one_line(study):
    with pytest.raises(EvaluationError, match=rf"--host 127.0.0.1 --port {study[0]}: .*in use"):
        StudyServer(None, "127.0.0.1", study[0])


def test_a_spoilt_image_keeps_its_size_and_16_colours():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8))
    spoilt = spoil_image(image)
    assert spoilt.size == image.size
    assert len(np.unique(np.asarray(spoilt).reshape(-1, 3), axis=0)) == 16
    assert np.asarray(spoilt).mean() == pytest.approx(np.asarray(image).mean(), abs=1)
