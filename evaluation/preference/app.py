"""The voting page as a Starlette application, without resources from other sites.

    GET  /                         the page; sets a cookie for a new voter
    GET  /next                     the next task: token, question, prompt (only for adherence), progress
    GET  /image/TOKEN/left|right   a PNG
    POST /vote                     {"token": ..., "choice": "left" | "right" | "tie"}

A voter is identified by a cookie with a random secret, of which the study stores the hash, so nobody can vote as
another voter or on another voter's task. `?voter=NAME`, which a survey platform can add to the address, separates the
voters of one browser and is stored with their votes, but is not verified. No response contains the name of a run or
image file, so voters cannot tell the runs apart.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable
from typing import Any

import anyio
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from evaluation.preference.store import SIDES, TIE, Assignment, Store, StudyBusyError
from evaluation.reports.page import SHARP_BELOW, render_page
from evaluation.runs.run import Run

PARTICIPANT = re.compile(r"[\w.@+-]{1,128}", re.ASCII)
TOKEN = re.compile(r"[\w-]{1,64}", re.ASCII)
MAX_BODY = 4096  # bytes of a vote
MAX_DISCARDED = 16 * 2**20  # bytes of an oversized body that are read, so that its sender can read the response
BODY_SECONDS = 20.0  # time limit for receiving a body
COOKIE_SECONDS = 90 * 24 * 3600
SPOILT_SIZE = 4  # pixels; an image of 4 x 4 pixels does not show anything
# The paper's two tasks: quality without the prompt, adherence with it.
WORDING = {
    "quality": "Which image is of better quality and more pleasing?",
    "adherence": "Which image follows the text more faithfully?",
}
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    ),
}


def spoil_image(image: Image.Image) -> Image.Image:
    """Degrade an image to 4 x 4 blocks of its original size, which an attentive voter never prefers."""
    return image.resize((SPOILT_SIZE, SPOILT_SIZE), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


class StudyPage:
    """Handles the requests of one study.

    Args:
        store: store of the votes.
        runs: runs to compare, with the same names as in the store.
        votes_per_task: number of votes for each pair, prompt and question.
        check_share: fraction of attention checks.
    """

    def __init__(self, store: Store, runs: list[Run], votes_per_task: int, check_share: float):
        self.store = store
        self.runs = {run.name: run for run in runs}
        self.prompts = runs[0].prompts
        self.votes_per_task = votes_per_task
        self.check_share = check_share

    def show_page(self, request: Request) -> Response:
        """The page, with a cookie for a new voter."""
        participant = self._participant(request)
        response = HTMLResponse(render_page("preference/templates/vote.html", sharp_below=SHARP_BELOW), headers=HEADERS)
        if self._find_voter(request) is None:
            # Not "strict", so that a voter who returns by a link from a survey platform is recognized.
            response.set_cookie(
                self._cookie_name(participant), self.store.add_voter(participant), max_age=COOKIE_SECONDS,
                httponly=True, samesite="lax",
            )  # fmt: skip
        return response

    def show_next(self, request: Request) -> Response:
        """The next task of the voter; the token is null if there are no more tasks."""
        voter = self._require_voter(request)
        assignment = self.store.assign(voter, self.votes_per_task, self.check_share)
        done, total = self.store.progress(voter, self.votes_per_task)
        task: dict[str, Any] = {"done": done, "total": total, "token": None}
        if assignment is not None:
            prompt = self.prompts[assignment.prompt] if assignment.question == "adherence" else None
            task |= {"token": assignment.token, "question": WORDING[assignment.question], "prompt": prompt}
        return JSONResponse(task, headers=HEADERS)

    def show_image(self, request: Request) -> Response:
        """An image of one of the voter's assignments, as PNG without metadata."""
        voter = self._require_voter(request)
        token, side = request.path_params["token"], request.path_params["side"]
        assignment = self.store.find_assignment(token) if TOKEN.fullmatch(token) and side in SIDES else None
        if assignment is None or assignment.voter != voter:
            raise HTTPException(404, "there is no such image")
        return Response(self._read_image(assignment, side), media_type="image/png", headers=HEADERS)

    def _read_image(self, assignment: Assignment, side: str) -> bytes:
        run = self.runs[getattr(assignment, side)]
        image = run.load(run.shots[assignment.prompt])
        image = spoil_image(image) if assignment.spoilt == side else image
        buffer = io.BytesIO()
        Image.frombytes("RGB", image.size, image.tobytes()).save(buffer, format="PNG")
        return buffer.getvalue()

    async def take_vote(self, request: Request) -> Response:
        """Record a vote. Responds 409 if it was given before, or belongs to another voter's assignment."""
        # Pages of other sites can send forms, but not this content type.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "send application/json")
        token, choice = _parse_vote(await _read_body(request))
        voter = await run_in_threadpool(self._require_voter, request)
        if not await run_in_threadpool(self.store.add_vote, voter, token, choice):
            raise HTTPException(409, "this vote was given before")
        return JSONResponse({"counted": True}, headers=HEADERS)

    def _participant(self, request: Request) -> str | None:
        name = request.query_params.get("voter")
        if name is not None and not PARTICIPANT.fullmatch(name):
            raise HTTPException(400, "voter: 1 to 128 letters, digits, dots, dashes, @ or +")
        return name

    def _cookie_name(self, participant: str | None) -> str:
        """Name of the cookie. Each study has its own, because cookies are shared by all ports of a host."""
        text = f"{self.store.fingerprint} {participant or ''}"
        return f"voter-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _find_voter(self, request: Request) -> str | None:
        secret = request.cookies.get(self._cookie_name(self._participant(request)))
        return self.store.find_voter(secret) if secret else None

    def _require_voter(self, request: Request) -> str:
        voter = self._find_voter(request)
        if voter is None:
            raise HTTPException(401, "this page needs its cookie; allow cookies and reload the page")
        return voter


async def _read_body(request: Request) -> bytes:
    """Read the body, up to `MAX_BODY` bytes. Up to `MAX_DISCARDED` bytes of a longer body are discarded."""
    body, size = b"", 0
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                body = (body + chunk)[: MAX_BODY + 1]
                if size > MAX_DISCARDED:
                    break
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive in {BODY_SECONDS:g} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body was truncated") from None
    if size > MAX_BODY:
        raise HTTPException(413, f"at most {MAX_BODY} bytes")
    return body


def _parse_vote(body: bytes) -> tuple[str, str]:
    """Token and choice of a vote."""
    try:
        vote = json.loads(body)
        token, choice = vote["token"], vote["choice"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise HTTPException(400, "send JSON with token and choice") from None
    if not isinstance(token, str) or not TOKEN.fullmatch(token):
        raise HTTPException(400, "token must be one from /next")
    if choice not in (*SIDES, TIE):
        raise HTTPException(400, f"choice must be one of {', '.join((*SIDES, TIE))}")
    return token, choice


def _answer_http_error(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, headers={**HEADERS, **(error.headers or {})})


def _answer_busy(request: Request, error: StudyBusyError) -> Response:
    """Nothing was written, so the page sends the same again."""
    return JSONResponse({"error": "the study is busy"}, 503, headers={**HEADERS, "Retry-After": "2"})


def make_app(page: StudyPage, allowed_hosts: list[str]) -> Starlette:
    """The application.

    Args:
        page: answers the requests.
        allowed_hosts: names in the Host header that are answered. A site of another name that is made to point to this
            machine could otherwise read the study through a visitor's browser.
    """
    routes = [
        Route("/", page.show_page),
        Route("/next", page.show_next),
        Route("/image/{token}/{side}", page.show_image),
        Route("/vote", page.take_vote, methods=["POST"]),
    ]
    handlers: dict[Any, Callable[..., Response]] = {HTTPException: _answer_http_error, StudyBusyError: _answer_busy}
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts, www_redirect=False)],
        exception_handlers=handlers,
    )
