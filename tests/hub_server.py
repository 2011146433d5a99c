"""A stand-in for the Hugging Face Hub on 127.0.0.1: as much of it as huggingface_hub needs to push and to pull.

Repositories with their history live in memory; safetensors and what is large go by LFS, whose content is fetched from
another host, as on the hub. Of Xet there is nothing: clients are to be told HF_HUB_DISABLE_XET=1.

    with HubServer() as hub:
        HfApi(endpoint=hub.url).create_repo("me/it")
        hub.failures["/commit/"] = 500            # what every request whose path has this in it is answered
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens: of one who may write everywhere, and of one who may nowhere."""
_LFS = 10 << 20  # bytes


@dataclass
class Repository:
    """The commits of a repository, the newest last: each a name, and its files."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit that has these files and no others; its name."""
        text = repr((len(self.commits), sorted(files.items())))
        self.commits.append((hashlib.sha1(text.encode()).hexdigest(), dict(files)))
        return self.commits[-1][0]

    @property
    def files(self) -> dict[str, bytes]:
        """Of the newest commit."""
        return self.commits[-1][1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision: `main`, a commit's name, or a number of commits as a tag (`v1` is the first)."""
        if revision == "main":
            return self.commits[-1]
        if revision.startswith("v") and revision[1:].isdigit() and int(revision[1:]) <= len(self.commits):
            return self.commits[int(revision[1:]) - 1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class HubServer:
    """The server; a context manager."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        """LFS: digest -> content."""
        self.failures: dict[str, int] = {}
        """Part of a path -> the status that it is answered with."""
        self.cut: set[str] = set()
        """Names of files of which half is sent."""
        self.requests: list[str] = []
        """Method and path of each, in order."""
        self.sent = 0
        """Bytes of all answers."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.other_host = self.url.replace("127.0.0.1", "localhost")

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], **settings: Any) -> Repository:
        """A repository with one commit."""
        self.repositories[repo_id] = Repository(**settings)
        self.repositories[repo_id].commit(files)
        return self.repositories[repo_id]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _answer(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path}")
        status = next((status for part, status in self.hub.failures.items() if part in self.path), None)
        if status is not None:
            self._refuse(status, "as the test wants it")
        elif self.path.startswith("/lfs/"):
            self._lfs(self.path.removeprefix("/lfs/"))
        elif self.path == "/api/repos/create":
            self._create()
        elif self.path == "/api/validate-yaml":
            self._validate()
        elif self.path.startswith("/api/models/"):
            self._api(self.path.removeprefix("/api/models/").split("/"))
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self._batch()
        elif "/resolve/" in self.path:
            repo_id, _, rest = self.path.strip("/").partition("/resolve/")
            self._resolve(repo_id, *rest.split("/", 1))
        else:
            self._refuse(404, "Not Found")

    def _create(self) -> None:
        wanted = json.loads(self.body)
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        if not self._may_write():
            return
        if repo_id in self.hub.repositories:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo_id}"})
        else:
            self.hub.add(repo_id, {".gitattributes": b""}, private=wanted.get("visibility") == "private")
            self._send(200, {"url": f"{self.hub.url}/{repo_id}"})

    def _validate(self) -> None:
        wrong = "license: wtf-1.0" in json.loads(self.body)["content"]
        errors = [{"message": '"license" must be one of [apache-2.0, mit, …]'}] if wrong else []
        self._send(400 if wrong else 200, {"errors": errors, "warnings": []})

    def _api(self, path: list[str]) -> None:
        repo_id, (what, revision) = "/".join(path[:2]), [*path[2:4], "", "main"][:2] if len(path) > 2 else ("", "main")
        repository = self._see(repo_id)
        if repository is None:
            return
        found = repository.at(revision)
        if found is None:
            self._refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        elif what == "preupload":
            self._preupload(found[1])
        elif what == "commit":
            self._commit(repo_id, repository)
        elif what == "tree":
            self._tree(found[1])
        else:
            siblings = [{"rfilename": name} for name in found[1]]
            self._send(200, {"id": repo_id, "sha": found[0], "private": repository.private, "siblings": siblings})

    def _tree(self, files: dict[str, bytes]) -> None:
        entries = []
        for name, content in files.items():
            oid = _git_oid(name, content)
            lfs = {"oid": oid, "size": len(content), "pointerSize": 1} if _by_lfs(name, len(content)) else None
            entries.append({"type": "file", "path": name, "size": len(content), "oid": oid, "lfs": lfs})
        self._send_bytes(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _preupload(self, there: dict[str, bytes]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if _by_lfs(file["path"], file["size"]) else "regular",
                "shouldIgnore": False,
                "oid": _git_oid(file["path"], there[file["path"]]) if file["path"] in there else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._send(200, {"files": files})

    def _batch(self) -> None:
        if not self._may_write():
            return
        objects = []
        for one in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}}}
            objects.append({**one, **({} if one["oid"] in self.hub.objects else {"actions": upload})})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _lfs(self, oid: str) -> None:
        if self.command == "PUT":
            assert hashlib.sha256(self.body).hexdigest() == oid
            self.hub.objects[oid] = self.body
            self._send(200, {})
        else:
            self._send_file(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _commit(self, repo_id: str, repository: Repository) -> None:
        if not self._may_write():
            return
        files = dict(repository.files)
        for line in self.body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header" and value.get("parentCommit", repository.commits[-1][0]) != repository.commits[-1][0]:
                self._refuse(412, "A commit has happened since")
                return
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files)
        self._send(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}", "commitOid": oid})

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        repository = self._see(repo_id)
        if repository is None:
            return
        if repository.gated:
            self._refuse(403, "Access to it is restricted", "GatedRepo")
            return
        found = repository.at(revision)
        if found is None:
            self._refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        elif name not in found[1]:
            self._refuse(404, "Entry not found", "EntryNotFound")
        else:
            self._send_entry(name, found[1][name], found[0])

    def _send_entry(self, name: str, content: bytes, commit: str) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_oid(name, content)}"'}
        if not _by_lfs(name, len(content)):
            self._send_file(content[: len(content) // 2] if name in self.hub.cut else content, headers)
            return
        oid = hashlib.sha256(content).hexdigest()
        self.hub.objects[oid] = content[: len(content) // 2] if name in self.hub.cut else content
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        self._send(302, {}, headers | {"Location": f"{self.hub.other_host}/lfs/{oid}"})

    def _see(self, repo_id: str) -> Repository | None:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self._token() not in (WRITER, READER)):
            self._refuse(404 if self._token() else 401, "Repository not found", "RepoNotFound")
            return None
        return repository

    def _may_write(self) -> bool:
        if self._token() == WRITER:
            return True
        known = self._token() == READER
        self._refuse(403 if known else 401, "You don't have the rights" if known else "Invalid username or password.")
        return False

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, {"error": message}, headers)

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send_file(self, content: bytes, headers: dict[str, str]) -> None:
        headers = {"Content-Type": "application/octet-stream", **headers}
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part is None:
            self._send_bytes(200, content, headers)
            return
        begin, end = int(part[1]), min(int(part[2]) + 1, len(content))
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        self._send_bytes(206, content[begin:end], headers)

    def _send_bytes(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.hub.sent += len(content)
            self.wfile.write(content)


def _by_lfs(name: str, size: int) -> bool:
    return name.endswith(".safetensors") or size >= _LFS


def _git_oid(name: str, content: bytes) -> str:
    """What git calls a file's content; of a file that goes by LFS, that is the digest of what it holds."""
    if _by_lfs(name, len(content)):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
