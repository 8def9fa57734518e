"""The Hub's answers, route by route, for the model repos of a `Store`. How they travel stands in `server.py`."""

import base64
import json
import re
from urllib.parse import unquote

from .store import Account, File, Refusal, Repo, Store, upload_mode

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
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


class Routes:
    """One request's answer. The handler that inherits this sets what follows, and sends what the methods give it."""

    store: Store
    account: Account | None
    body: bytes
    url: str
    cdn: str

    def send_json(self, value: object, status: int = 200, headers: dict | None = None) -> None:
        raise NotImplementedError

    def send_bytes(self, data: bytes, status: int, headers: dict) -> None:
        raise NotImplementedError

    def _read(self, repo: str) -> Repo:
        return self.store.readable(repo, self.account)

    def _write(self, repo: str) -> Repo:
        return self.store.writable(repo, self.account)

    def do_create(self) -> None:
        asked = json.loads(self.body)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        try:
            repo_id = self.store.create(self.account, asked["name"], asked.get("organization"), private)
        except Refusal as refusal:
            if refusal.status != 409:
                raise
            repo_id = f"{asked.get('organization') or self.account.name}/{asked['name']}"
            return self.send_json({"error": refusal.message, "url": f"{self.url}/{repo_id}"}, 409)
        return self.send_json({"url": f"{self.url}/{repo_id}", "name": repo_id})

    def do_validate_yaml(self) -> None:
        good = json.loads(self.body)["content"].startswith("---\n")
        self.send_json({"errors": [] if good else [{"message": "no metadata"}], "warnings": []}, 200 if good else 400)

    def do_whoami(self) -> None:
        if self.account is None:
            raise Refusal(401, "Invalid user token")
        self.send_json({"type": "user", "name": self.account.name, "orgs": []})

    def do_info(self, repo: str, rev: str | None) -> None:
        found = self._read(repo)
        sha = found.resolve(rev or "main")
        siblings = [{"rfilename": path} for path in found.files(sha)]
        self.send_json(
            {"id": repo, "modelId": repo, "sha": sha, "private": found.private, "siblings": siblings, "tags": []}
        )

    def do_refs(self, repo: str) -> None:
        branches = self._read(repo).branches.items()
        named = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches]
        self.send_json({"branches": named, "tags": [], "converts": []})

    def do_tree(self, repo: str, rev: str, path: str | None) -> None:
        files = self._read(repo).files(rev).items()
        entries = [_tree_entry(name, file) for name, file in files if name.startswith(unquote(path or ""))]
        self.send_json(entries)

    def do_branch(self, repo: str, rev: str) -> None:
        found, name = self._write(repo), unquote(rev)
        if name in found.branches:
            raise Refusal(409, f"Reference already exists: {name}")
        found.branches[name] = found.resolve(json.loads(self.body or b"{}").get("startingPoint", "main"))
        self.send_json({}, 201)

    def do_preupload(self, repo: str, rev: str) -> None:
        known = self._write(repo).files(rev)
        asked = json.loads(self.body)["files"]
        answers = [
            {"path": f["path"], "uploadMode": upload_mode(f["path"], f["size"]), "shouldIgnore": False} for f in asked
        ]
        for answer in answers:
            if answer["path"] in known:
                answer["oid"] = known[answer["path"]].etag
        self.send_json({"files": answers})

    def do_lfs_batch(self, repo: str) -> None:
        self._write(repo)
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.store.objects:
                item["actions"] = {"upload": {"href": f"{self.url}/lfs/{item['oid']}", "header": {}}}
        self.send_json({"transfer": "basic", "objects": objects})

    def do_lfs_put(self, oid: str) -> None:
        if File(self.body, True).sha256 != oid:
            raise Refusal(400, "The content does not match its hash")
        self.store.objects[oid] = self.body
        self.send_json({})

    def do_commit(self, repo: str, rev: str) -> None:
        found = self._write(repo)
        operations = [json.loads(line) for line in self.body.splitlines()]
        for operation in operations:
            if operation["key"] == "file":
                operation["value"]["content"] = base64.b64decode(operation["value"]["content"])
        sha = self.store.apply(found, unquote(rev), operations)
        self.send_json({"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo}/commit/{sha}"})

    def do_resolve(self, repo: str, rev: str, path: str) -> None:
        found = self._read(repo)
        sha = found.resolve(rev)
        file = found.commits[sha].get(unquote(path))
        if file is None:
            return self.send_json({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        if not file.lfs:
            return self.send_bytes(*_ranged(file.data, headers, self.headers.get("Range")))
        self.store.objects[file.sha256] = file.data
        linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": len(file.data)}
        return self.send_bytes(b"", 302, {**headers, **linked, "Location": f"{self.cdn}/cdn/{file.sha256}"})

    def do_cdn(self, oid: str) -> None:
        headers = {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        self.send_bytes(*_ranged(self.store.objects[oid], headers, self.headers.get("Range")))


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
