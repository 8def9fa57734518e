"""What a Hub knows: accounts, model repos with branches and commits, and stored large files. No network here."""

import hashlib
import itertools
import threading
from dataclasses import dataclass, field
from urllib.parse import unquote

LARGE = 5_000  # bytes from which the server asks for LFS; the real one asks by size and .gitattributes
LARGE_SUFFIXES = (".safetensors", ".png")


class Refusal(Exception):
    """An HTTP answer of 400 and above, with the Hub's error code where it has one."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class File:
    """One file of a commit."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """The git blob id; of an LFS file, the id of its pointer (any stable id will do)."""
        data = self.sha256.encode() if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Repo:
    """A model repo: commits by sha, each the whole tree; branches name commits."""

    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(unquote(revision), revision)
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def files(self, revision: str = "main") -> dict[str, File]:
        return self.commits[self.resolve(revision)]


@dataclass(frozen=True)
class Account:
    """Who a token belongs to."""

    name: str
    can_write: bool = True


class Store:
    """All repos, and the tokens that are good."""

    def __init__(self, tokens: dict[str, Account]):
        self.tokens = tokens
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # large files by sha256
        self.lock = threading.RLock()
        self._count = itertools.count()

    def account(self, authorization: str | None) -> Account | None:
        if authorization is None:
            return None
        token = authorization.removeprefix("Bearer ")
        if token not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens[token]

    def readable(self, repo_id: str, account: Account | None) -> Repo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and (account is None or account.name != repo_id.split("/")[0])):
            raise Refusal(401 if account is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, repo_id: str, account: Account | None) -> Repo:
        repo = self.readable(repo_id, account)
        if account is None:
            raise Refusal(401, "Unauthorized")
        if account.name != repo_id.split("/")[0] or not account.can_write:
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    def create(self, account: Account | None, name: str, organization: str | None, private: bool) -> str:
        if account is None:
            raise Refusal(401, "Unauthorized")
        namespace = organization or account.name
        repo_id = f"{namespace}/{name}"
        if namespace != account.name or not account.can_write:
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        if repo_id in self.repos:
            raise Refusal(409, "You already created this model repo")
        self.repos[repo_id] = Repo(private)
        self.commit(
            self.repos[repo_id], "main", "initial commit", {".gitattributes": File(b"*.safetensors lfs\n", False)}
        )
        return repo_id

    def commit(self, repo: Repo, branch: str, title: str, tree: dict[str, File]) -> str:
        sha = hashlib.sha1(f"{next(self._count)} {title}".encode()).hexdigest()
        repo.commits[sha], repo.titles[sha], repo.branches[branch] = tree, title, sha
        return sha

    def apply(self, repo: Repo, branch: str, operations: list[dict]) -> str:
        """The lines of a commit request, all of them or none. Returns the new commit's sha."""
        header = operations[0]["value"]
        if branch not in repo.branches:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = repo.branches[branch]
        if header.get("parentCommit", head) != head:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(repo.commits[head])
        for operation in operations[1:]:
            value = operation["value"]
            if operation["key"] == "file":
                tree[value["path"]] = File(value["content"], False)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                tree[value["path"]] = File(self.objects[value["oid"]], True)
            elif operation["key"] == "deletedFile":
                if tree.pop(value["path"], None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise Refusal(400, f"Unknown operation {operation['key']}")
        return self.commit(repo, branch, header["summary"], tree)


def upload_mode(path: str, size: int) -> str:
    """`lfs` or `regular`."""
    return "lfs" if size >= LARGE or path.endswith(LARGE_SUFFIXES) else "regular"
