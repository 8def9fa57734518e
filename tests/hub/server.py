"""A small Hub on loopback, for the real `huggingface_hub` client: enough of the protocol to push, load and fail.

Create repo, branches, model info, tree, pre-upload, LFS batch and upload, commit, resolve with ETag and range. Large
files are redirected to another host name, as the Hub does with its content network. Faults are injected by `Hub.fail`.
"""

import base64
import json
import re
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from .store import Account, File, Refusal, Repo, Store, upload_mode

WRITE, READ, OTHER = "hf_write", "hf_read", "hf_other"
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD path" matches `pattern`, `times` times (-1: always)."""

    pattern: str
    status: int | None = 503  # None drops the connection in mid-body
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

    def fail(self, pattern: str, status: int | None = 503, times: int = 1, **headers: str) -> None:
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


ROUTES = [
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("GET", "/api/whoami-v2", "whoami"),
    ("GET", f"/api/models/{REPO}(/revision/(?P<rev>[^/]+))?", "info"),
    ("GET", f"/api/models/{REPO}/refs", "refs"),
    ("GET", f"/api/models/{REPO}/tree/(?P<rev>[^/]+)(/(?P<path>.+))?", "tree"),
    ("POST", f"/api/models/{REPO}/branch/(?P<rev>[^/]+)", "branch"),
    ("POST", f"/api/models/{REPO}/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", f"/api/models/{REPO}/commit/(?P<rev>[^/]+)", "commit"),
    ("POST", f"/{REPO}\\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("GET", f"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", "/cdn/(?P<oid>[0-9a-f]{64})", "cdn"),
]


class Handler(BaseHTTPRequestHandler):
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
        if self.fault and self.fault.status is None and self.command in ("PUT", "POST"):
            self.rfile.read(1)
            return self._drop()
        self.body = self._read_body()
        self.query = parse_qs(url.query)
        try:
            if self.fault and self.fault.status:
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
            self._json({"error": refusal.message}, refusal.status, headers | (self.fault.headers if self.fault else {}))

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

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _bytes(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.status is None:  # half of the answer, then silence
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(data)

    def _read(self, repo: str) -> Repo:
        return self.hub.store.readable(repo, self.account)

    def _write(self, repo: str) -> Repo:
        return self.hub.store.writable(repo, self.account)

    def do_create(self) -> None:
        asked = json.loads(self.body)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        try:
            repo_id = self.hub.store.create(self.account, asked["name"], asked.get("organization"), private)
        except Refusal as refusal:
            if refusal.status != 409:
                raise
            repo_id = f"{asked.get('organization') or self.account.name}/{asked['name']}"
            return self._json({"error": refusal.message, "url": f"{self.hub.url}/{repo_id}"}, 409)
        return self._json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def do_validate_yaml(self) -> None:
        good = json.loads(self.body)["content"].startswith("---\n")
        self._json({"errors": [] if good else [{"message": "no metadata"}], "warnings": []}, 200 if good else 400)

    def do_whoami(self) -> None:
        if self.account is None:
            raise Refusal(401, "Invalid user token")
        self._json({"type": "user", "name": self.account.name, "orgs": []})

    def do_info(self, repo: str, rev: str | None) -> None:
        found = self._read(repo)
        sha = found.resolve(rev or "main")
        siblings = [{"rfilename": path} for path in found.files(sha)]
        self._json(
            {"id": repo, "modelId": repo, "sha": sha, "private": found.private, "siblings": siblings, "tags": []}
        )

    def do_refs(self, repo: str) -> None:
        branches = self._read(repo).branches.items()
        named = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches]
        self._json({"branches": named, "tags": [], "converts": []})

    def do_tree(self, repo: str, rev: str, path: str | None) -> None:
        files = self._read(repo).files(rev).items()
        entries = [_tree_entry(name, file) for name, file in files if name.startswith(unquote(path or ""))]
        self._json(entries)

    def do_branch(self, repo: str, rev: str) -> None:
        found, name = self._write(repo), unquote(rev)
        if name in found.branches:
            raise Refusal(409, f"Reference already exists: {name}")
        found.branches[name] = found.resolve(json.loads(self.body or b"{}").get("startingPoint", "main"))
        self._json({}, 201)

    def do_preupload(self, repo: str, rev: str) -> None:
        known = self._write(repo).files(rev)
        asked = json.loads(self.body)["files"]
        answers = [
            {"path": f["path"], "uploadMode": upload_mode(f["path"], f["size"]), "shouldIgnore": False} for f in asked
        ]
        for answer in answers:
            if answer["path"] in known:
                answer["oid"] = known[answer["path"]].etag
        self._json({"files": answers})

    def do_lfs_batch(self, repo: str) -> None:
        self._write(repo)
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.store.objects:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}}}
        self._json({"transfer": "basic", "objects": objects})

    def do_lfs_put(self, oid: str) -> None:
        if File(self.body, True).sha256 != oid:
            raise Refusal(400, "The content does not match its hash")
        self.hub.store.objects[oid] = self.body
        self._json({})

    def do_commit(self, repo: str, rev: str) -> None:
        found = self._write(repo)
        operations = [json.loads(line) for line in self.body.splitlines()]
        for operation in operations:
            if operation["key"] == "file":
                operation["value"]["content"] = base64.b64decode(operation["value"]["content"])
        sha = self.hub.store.apply(found, unquote(rev), operations)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def do_resolve(self, repo: str, rev: str, path: str) -> None:
        found = self._read(repo)
        sha = found.resolve(rev)
        file = found.commits[sha].get(unquote(path))
        if file is None:
            return self._json({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        if not file.lfs:
            return self._bytes(*_ranged(file.data, headers, self.headers.get("Range")))
        self.hub.store.objects[file.sha256] = file.data
        linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": len(file.data)}
        return self._bytes(b"", 302, {**headers, **linked, "Location": f"{self.hub.cdn}/cdn/{file.sha256}"})

    def do_cdn(self, oid: str) -> None:
        headers = {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        self._bytes(*_ranged(self.hub.store.objects[oid], headers, self.headers.get("Range")))


def _tree_entry(path: str, file: File) -> dict:
    lfs = {"lfs": {"oid": file.sha256, "size": len(file.data), "pointerSize": 130}} if file.lfs else {}
    return {"type": "file", "path": path, "size": len(file.data), "oid": file.oid, **lfs}


def _ranged(data: bytes, headers: dict, asked: str | None) -> tuple[bytes, int, dict]:
    if not (match := re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")):
        return data, 200, headers
    start, end = int(match[1]), int(match[2]) + 1 if match[2] else len(data)
    if start >= len(data):
        return b"", 416, {**headers, "Content-Range": f"bytes */{len(data)}"}
    end = min(end, len(data))
    return data[start:end], 206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}


@contextmanager
def serve():
    """A running `Hub`; its port is free again afterwards."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    port = server.server_address[1]
    hub.url, hub.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
