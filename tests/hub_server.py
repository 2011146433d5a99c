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

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], **settings: Any) -> Repository:
        """A repository with one commit."""
        self.repositories[repo_id] = Repository(**settings)
        self.repositories[repo_id].commit(files)
        return self.repositories[repo_id]


class Refused(Exception):
    """Status, message and code of an answer that says no."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path}")
        try:
            self._answer()
        except Refused as refused:
            status, message, code = (*refused.args, "")[:3]
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            self._send(status, {"error": message}, headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _answer(self) -> None:
        for part, status in self.hub.failures.items():
            if part in self.path:
                raise Refused(status, "as the test wants it")
        for pattern, answer in {
            r"/lfs/(.+)": self._lfs,
            r"/api/repos/create": self._create,
            r"/api/validate-yaml": self._validate,
            r"/api/models/([^/]+/[^/]+)(?:/([^/]+)/([^/]+).*)?": self._model,
            r".+\.git/info/lfs/objects/batch": self._batch,
            r"/(.+)/resolve/([^/]+)/(.+)": self._resolve,
        }.items():
            if found := re.fullmatch(pattern, self.path):
                answer(*found.groups())  # type: ignore[operator]
                return
        raise Refused(404, "Not Found")

    def _create(self) -> None:
        wanted = json.loads(self.body)
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        self._check_writer()
        if repo_id in self.hub.repositories:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo_id}"})
        else:
            self.hub.add(repo_id, {".gitattributes": b""}, private=wanted.get("visibility") == "private")
            self._send(200, {"url": f"{self.hub.url}/{repo_id}"})

    def _validate(self) -> None:
        wrong = "license: wtf-1.0" in json.loads(self.body)["content"]
        errors = [{"message": '"license" must be one of [apache-2.0, mit, …]'}] if wrong else []
        self._send(400 if wrong else 200, {"errors": errors, "warnings": []})

    def _model(self, repo_id: str, what: str | None, revision: str | None) -> None:
        repository, commit, files = self._see(repo_id, revision or "main")
        if what == "preupload":
            self._preupload(files)
        elif what == "commit":
            self._commit(repo_id, repository)
        else:
            siblings = [{"rfilename": name} for name in files]
            self._send(200, {"id": repo_id, "sha": commit, "private": repository.private, "siblings": siblings})

    def _preupload(self, there: dict[str, bytes]) -> None:
        files = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            mode = "lfs" if _by_lfs(path, file["size"]) else "regular"
            oid = _git_oid(path, there[path]) if path in there else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": files})

    def _batch(self) -> None:
        self._check_writer()
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
        self._check_writer()
        files = dict(repository.files)
        for line in self.body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header" and value.get("parentCommit", repository.commits[-1][0]) != repository.commits[-1][0]:
                raise Refused(412, "A commit has happened since")
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files)
        self._send(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}", "commitOid": oid})

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        repository, commit, files = self._see(repo_id, revision)
        if repository.gated:
            raise Refused(403, "Access to it is restricted", "GatedRepo")
        if name not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        oid, content = _git_oid(name, files[name]), files[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{oid}"'}
        sent = content[: len(content) // 2] if name in self.hub.cut else content
        if _by_lfs(name, len(content)):
            self.hub.objects[oid] = sent
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            self._send(302, {}, headers | {"Location": f"{self.hub.other_host}/lfs/{oid}"})
        else:
            self._send_file(sent, headers)

    def _see(self, repo_id: str, revision: str) -> tuple[Repository, str, dict[str, bytes]]:
        """The repository, and the name and the files of its commit of a revision."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self._token() not in (WRITER, READER)):
            raise Refused(404 if self._token() else 401, "Repository not found", "RepoNotFound")
        found = repository.at(revision)
        if found is None and not repository.gated:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return (repository, *(found or ("", {})))

    def _check_writer(self) -> None:
        if self._token() == READER:
            raise Refused(403, "You don't have the rights")
        if self._token() != WRITER:
            raise Refused(401, "Invalid username or password.")

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

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
