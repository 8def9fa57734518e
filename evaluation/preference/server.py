"""The voting page, served by the standard library, with nothing from elsewhere on it.

    GET  /             the page
    GET  /next?voter=  what to answer: token, question, prompt (only if adherence is asked), votes given so far
    GET  /image/TOKEN/left|right
    POST /vote         {"token": ..., "choice": "left" | "right"}

No answer holds a run's name or an image's file name, so a voter cannot know which is which.
"""

import io
import json
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from evaluation.preference.store import SIDES, Store
from evaluation.reports.page import SHARP_BELOW, render
from evaluation.runs.run import Run

VOTER = re.compile(r"[\w.-]{1,64}")
MAX_BODY = 4096  # bytes
SPOILT_SIZE = 4  # pixels: an image of 4 x 4 colours depicts nothing
# The paper's two tasks: quality without the prompt, adherence with it.
WORDING = {
    "quality": "Which image is of better quality and more pleasing?",
    "adherence": "Which image follows the text more faithfully?",
}


def spoil(image: Image.Image) -> Image.Image:
    """Reduce an image to 4 x 4 colours at its old size: what an attentive voter never prefers."""
    return image.resize((SPOILT_SIZE, SPOILT_SIZE), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


class StudyServer(ThreadingHTTPServer):
    """Serves one study.

    Args:
        address: host and port; port 0 takes a free one.
        store: where votes go.
        runs: what is compared, by the names that the store has.
        votes_per_task: so many people vote on every pair, prompt and question.
        check_share: share of attention checks among what is shown.
    """

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], store: Store, runs: list[Run], votes_per_task: int, check_share: float
    ):
        super().__init__(address, Handler)
        self.store = store
        self.runs = {run.name: run for run in runs}
        self.prompts = runs[0].prompts
        self.votes_per_task = votes_per_task
        self.check_share = check_share

    def next_task(self, voter: str) -> dict[str, Any]:
        """What `/next` answers."""
        done = self.store.progress(voter)
        assignment = self.store.assign(voter, self.votes_per_task, self.check_share)
        if assignment is None:
            return {"done": done, "token": None}
        prompt = self.prompts[assignment.prompt] if assignment.question == "adherence" else None
        return {"done": done, "token": assignment.token, "question": WORDING[assignment.question], "prompt": prompt}

    def image(self, token: str, side: str) -> bytes | None:
        """A PNG without metadata, or None if there is no such assignment."""
        assignment = self.store.find(token)
        if assignment is None:
            return None
        run = self.runs[getattr(assignment, side)]
        image = run.load(run.shots[assignment.prompt])
        image = spoil(image) if assignment.spoilt == side else image
        buffer = io.BytesIO()
        Image.frombytes("RGB", image.size, image.tobytes()).save(buffer, format="PNG")
        return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: StudyServer
    timeout = 30  # seconds that a slow client may hold a thread

    def do_GET(self) -> None:
        """The page, a task or an image."""
        url = urlsplit(self.path)
        image = re.fullmatch(r"/image/([\w-]+)/(left|right)", url.path)
        if url.path == "/":
            self._answer(render("vote.html", sharp_below=SHARP_BELOW).encode(), "text/html; charset=utf-8")
        elif url.path == "/next":
            voter = parse_qs(url.query).get("voter", [""])[0]
            if VOTER.fullmatch(voter):
                self._answer_json(self.server.next_task(voter))
            else:
                self._refuse(HTTPStatus.BAD_REQUEST, "voter: 1 to 64 letters, digits, dots, dashes")
        elif image and (png := self.server.image(*image.groups())):
            self._answer(png, "image/png")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def do_POST(self) -> None:
        """A vote. 409 if it was given before."""
        if self.path != "/vote":
            return self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")
        # A page of another site can post, but not with this type, and not learn a token.
        if self.headers.get_content_type() != "application/json":
            return self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BODY} bytes")
        try:
            vote = json.loads(self.rfile.read(int(length)))
            token, choice = vote["token"], vote["choice"]
        except (ValueError, TypeError, KeyError):
            return self._refuse(HTTPStatus.BAD_REQUEST, "send {token, choice}")
        if not isinstance(token, str) or choice not in SIDES:
            return self._refuse(HTTPStatus.BAD_REQUEST, f"choice is one of {', '.join(SIDES)}")
        if not self.server.store.vote(token, choice):
            return self._refuse(HTTPStatus.CONFLICT, "this vote was given before")
        return self._answer_json({"counted": True})

    def _answer_json(self, value: dict[str, Any]) -> None:
        self._answer(json.dumps(value).encode(), "application/json")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._answer(json.dumps({"error": reason}).encode(), "application/json", status)

    def _answer(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Keep quiet: who votes is nobody's business."""
