"""The server by HTTP: blind, each vote once, nothing else answered."""

import io
import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from evaluation.preference.server import StudyServer, spoil
from evaluation.preference.store import Store, read_votes
from tests.evaluation.run_folders import PROMPTS, make_run


@pytest.fixture
def study(tmp_path):
    """A server over a dark and a bright run, half of what it shows being attention checks."""
    runs = [make_run(tmp_path / "secret-dark", 60), make_run(tmp_path / "secret-bright", 190)]
    facts = {"runs": sorted(run.name for run in runs), "prompts_sha256": runs[0].manifest["prompts_sha256"]}
    server = StudyServer(("127.0.0.1", 0), Store(tmp_path / "study.sqlite", facts, len(PROMPTS)), runs, 4, 0.5)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path / "study.sqlite"
    server.shutdown()
    server.server_close()
    thread.join()


def get(url: str) -> bytes:
    return urllib.request.urlopen(url, timeout=10).read()


def post(url: str, body: bytes, kind: str = "application/json") -> int:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        return urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


def brightness(png: bytes) -> tuple[float, int]:
    """Mean, and number of different colours."""
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    return pixels.mean(), len(np.unique(pixels.reshape(-1, 3), axis=0))


def test_a_whole_study_by_a_voter_who_likes_bright_images(study):
    """Every vote lands with the run whose picture was taken; checks show a run beside its own spoilt copy."""
    address, path = study
    prompts, tokens = set(), []
    while (task := json.loads(get(f"{address}/next?voter=ann")))["token"]:
        tokens.append(task["token"])
        assert task["done"] == len(tokens) - 1
        assert (task["prompt"] is None) == ("text" not in task["question"])  # quality is judged without the prompt
        prompts |= {task["prompt"]}
        seen = {side: brightness(get(f"{address}/image/{task['token']}/{side}")) for side in ("left", "right")}
        spoilt = [side for side, (_, colours) in seen.items() if colours <= 16]
        choice = max(seen, key=lambda side: (side not in spoilt, seen[side][0]))
        assert post(f"{address}/vote", json.dumps({"token": task["token"], "choice": choice}).encode()) == 200
    votes = read_votes(path)
    games = [vote for vote in votes if not vote["is_check"]]
    assert len(games) == 2 * len(PROMPTS)
    assert {vote["winner"] for vote in games} == {"secret-bright"}
    assert all(vote["passed"] for vote in votes if vote["is_check"])
    assert len(games) < len(votes) == len(tokens)
    assert prompts == {None, *PROMPTS}


def test_answers_do_not_say_which_run_is_which(study):
    address, _ = study
    task = get(f"{address}/next?voter=ann")
    page = get(f"{address}/")
    with urllib.request.urlopen(f"{address}/image/{json.loads(task)['token']}/left", timeout=10) as answer:
        image, headers = answer.read(), str(answer.headers)
    assert b"secret" not in task + page + image
    assert "secret" not in headers


def test_the_page_needs_nothing_from_elsewhere(study):
    page = get(f"{study[0]}/").decode()
    assert "://" not in page
    assert "Which image" in page


def test_votes_count_once_and_nonsense_not_at_all(study):
    address, path = study
    token = json.loads(get(f"{address}/next?voter=ann"))["token"]
    vote = json.dumps({"token": token, "choice": "left"}).encode()
    assert post(f"{address}/vote", vote, "text/plain") == 415  # what a form of another site could send
    assert post(f"{address}/vote", b"[1]") == 400
    assert post(f"{address}/vote", b"no json") == 400
    assert post(f"{address}/vote", json.dumps({"token": token, "choice": "both"}).encode()) == 400
    assert post(f"{address}/vote", json.dumps({"token": [token], "choice": "left"}).encode()) == 400
    assert post(f"{address}/vote", b" " * 5000) == 413
    assert post(f"{address}/elsewhere", vote) == 404
    assert read_votes(path) == []
    assert [post(f"{address}/vote", vote) for _ in range(3)] == [200, 409, 409]
    assert len(read_votes(path)) == 1


@pytest.mark.parametrize(
    "path", ["/next?voter=", "/next?voter=a%20b", "/next?voter=judge:x", "/next", "/next?voter=" + 65 * "a"]
)
def test_voters_need_a_plain_name(study, path):
    with pytest.raises(urllib.error.HTTPError, match="400"):
        get(study[0] + path)


@pytest.mark.parametrize("path", ["/image/x/left", "/image/x/run", "/../run.json", "/study.sqlite", "/style.css"])
def test_no_file_is_served(study, path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(study[0] + path)


def test_a_spoilt_image_keeps_its_size_and_16_colours():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8))
    spoilt = spoil(image)
    assert spoilt.size == image.size
    assert len(np.unique(np.asarray(spoilt).reshape(-1, 3), axis=0)) == 16
    assert np.asarray(spoilt).mean() == pytest.approx(np.asarray(image).mean(), abs=1)
