"""A small Hub on loopback, for the real `huggingface_hub` client: enough of the protocol to push, load and fail.

Create repo, branches, model info, tree, pre-upload, LFS batch and upload, commit, resolve with ETag and range. Large
files are redirected to another host name, as the Hub does with its content network. Faults are injected by `Hub.fail`.
"""

import json
import re
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from .routes import ROUTES, Routes
from .store import Account, Refusal, Store

WRITE, READ, OTHER = "hf_write", "hf_read", "hf_other"
DROP, LOSE = (
    -1,
    -2,
)  # in place of a status: reset the connection in mid-body; do what is asked, and lose half the answer


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD path" matches `pattern`, `times` times (-1: always)."""

    pattern: str
    status: int = 503
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """The server's state and address. `requests` holds "METHOD path" of all that came in, with its headers."""

    def __init__(self):
        accounts = {WRITE: Account("user"), READ: Account("user", can_write=False), OTHER: Account("other")}
        self.store = Store(accounts)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.faults: list[Fault] = []
        self.url = self.cdn = ""

    def fail(self, pattern: str, status: int = 503, times: int = 1, **headers: str) -> None:
        """Inject a `Fault`."""
        self.faults.append(Fault(pattern, status, times, headers))

    def fault_for(self, request: str) -> Fault | None:
        with self.store.lock:
            for fault in self.faults:
                if fault.times != 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Paths and contents, without the Hub's own .gitattributes."""
        files = self.store.repos[repo_id].files(revision)
        return {path: file.data for path, file in files.items() if path != ".gitattributes"}

    def titles(self, repo_id: str) -> list[str]:
        return list(self.store.repos[repo_id].titles.values())

    def seen(self, pattern: str) -> list[str]:
        """The requests that match."""
        return [request for request, _ in self.requests if re.search(pattern, request)]


class Handler(Routes, BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        request = f"{self.command} {url.path}"
        hub = self.hub
        hub.requests.append((request, {k.lower(): v for k, v in self.headers.items()}))
        self.fault = hub.fault_for(request)
        if self.fault and self.fault.status == DROP:
            self.rfile.read(1)
            return self._drop()
        self.body = self._read_body()
        try:
            if self.fault and self.fault.status > 0:
                raise Refusal(self.fault.status, "The server is not well")
            method = "GET" if self.command == "HEAD" else self.command
            for verb, pattern, name in ROUTES:
                if verb == method and (match := re.fullmatch(pattern, url.path)):
                    with hub.store.lock:
                        self.account = hub.store.account(self.headers.get("Authorization"))
                        return getattr(self, "do_" + name)(**match.groupdict())
            raise Refusal(404, f"No such route: {request}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.send_json(
                {"error": refusal.message}, refusal.status, headers | (self.fault.headers if self.fault else {})
            )

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _drop(self) -> None:
        """Reset the connection: no answer, no polite end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wfile.flush()
        self.connection.close()
        self.close_connection = True

    def send_json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def send_bytes(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.status == LOSE:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(data)


@contextmanager
def serve():
    """A running `Hub`; its port is free again afterwards."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub, "store": hub.store}))
    server.daemon_threads = True
    port = server.server_address[1]
    bound = server.RequestHandlerClass
    bound.url, bound.cdn = hub.url, hub.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
