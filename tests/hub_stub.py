"""A stand-in for the Hugging Face hub on the loopback: the part of its API that ``huggingface_hub`` calls here.

Paths, headers and fields are those of https://huggingface.co/docs/hub/api, and of what huggingface_hub 0.36, 1.5 and
2.4 ask for. Files are kept in memory, a dictionary for each commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stub"


class Repository:
    """Commits, and branches that name them."""

    def __init__(self, files: dict[str, bytes], *, private: bool = False) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.commit("main", {".gitattributes": b"", **files})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def files(self, branch: str = "main") -> dict[str, bytes]:
        """Those of a branch, without what the hub puts there itself."""
        return {name: content for name, content in self.commits[self.branches[branch]].items() if name[0] != "."}


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class Hub:
    """What the stub holds, and what it was asked for: tests set and read it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.refusal: Refusal | None = None
        self.large: dict[str, bytes] = {}  # by sha256
        self.wrong_sizes = False
        self.url = ""

    @property
    def fetched(self) -> set[str]:
        """Names of the files whose contents were asked for."""
        return {path.split("/resolve/")[1].split("/", 1)[1] for verb, path in self.requests if "/resolve/" in path}


class Handler(BaseHTTPRequestHandler):
    """Answers requests from the :class:`Hub` of the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits 40 ms for a delayed acknowledgment of its headers

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        try:
            self._authorize()
            content, headers = self._content(path, body)
            self._send(200, content, headers)
        except Refusal as refusal:
            text = json.dumps({"error": refusal.message}).encode()
            self._send(refusal.status, text, {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message})

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def _authorize(self) -> None:
        if self.hub.refusal is not None:
            raise self.hub.refusal
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise Refusal(401, message="Invalid credentials in Authorization header")

    def _content(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        if self.command == "PUT":
            assert path == f"/large/{hashlib.sha256(body).hexdigest()}"
            self.hub.large[path.removeprefix("/large/")] = body
            return b"", {}
        if self.command == "POST":
            return json.dumps(self._post(path, body)).encode(), {}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return json.dumps(self._info(match[1], match[2])).encode(), {}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            return json.dumps(self._tree(match[1], match[2])).encode(), {}
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            sha, files = self._at(match[1], match[2])
            if match[3] not in files:
                raise Refusal(404, "EntryNotFound")
            return files[match[3]], {"ETag": f'"{_oid(files[match[3]])}"', "X-Repo-Commit": sha}
        raise Refusal(404, message=f"the stub does not know {path}")

    def _post(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            valid = content.startswith("---\nlibrary_name: pyro_vae\n")
            return {"errors": [] if valid else [{"message": "no front matter"}], "warnings": []}
        if "Authorization" not in self.headers:
            raise Refusal(401, message="Invalid username or password.")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return {"transfer": "basic", "objects": objects}
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path)
        assert match is not None, path
        repo_id, verb, revision = match.groups()
        repository = self._repository(repo_id)
        if verb == "branch":
            if revision in repository.branches:
                raise Refusal(409, message="it exists")
            repository.branches[revision] = repository.branches["main"]
            return {}
        if not repo_id.startswith("ada/"):
            raise Refusal(403, message="you are not its owner")
        if verb == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            # The hub takes files of tensors as large ones, apart from the commit, however small they are.
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
            return {"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in paths]}
        return self._commit(repository, repo_id, revision, body)

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        repo_id = f"{asked['organization']}/{asked['name']}"
        if not repo_id.startswith("ada/"):
            raise Refusal(403, message="you may not make one there")
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.hub.repositories[repo_id] = Repository({}, private=private)
        return {"url": f"{self.hub.url}/{repo_id}"}

    def _commit(self, repository: Repository, repo_id: str, revision: str, body: bytes) -> dict[str, Any]:
        files = dict(repository.commits[repository.branches[revision]])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.hub.large[line["value"]["oid"]]
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        sha = repository.commit(revision, files)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}"}

    def _repository(self, repo_id: str) -> Repository:
        """As the hub does, one that is private is none to those who may not see it."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and "Authorization" not in self.headers):
            raise Refusal(404 if "Authorization" in self.headers else 401, "RepoNotFound", "Repository not found")
        return repository

    def _at(self, repo_id: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        repository = self._repository(repo_id)
        sha = repository.branches.get(revision or "main", revision or "")
        if sha not in repository.commits:
            raise Refusal(404, "RevisionNotFound", "Invalid rev id")
        return sha, repository.commits[sha]

    def _info(self, repo_id: str, revision: str | None) -> dict[str, Any]:
        sha, files = self._at(repo_id, revision)
        wrong = 1 if self.hub.wrong_sizes else 0
        siblings = [{"rfilename": name, "size": len(content) + wrong} for name, content in files.items()]
        private = self.hub.repositories[repo_id].private
        return {"id": repo_id, "modelId": repo_id, "sha": sha, "private": private, "siblings": siblings, "tags": []}

    def _tree(self, repo_id: str, revision: str) -> list[dict[str, Any]]:
        _, files = self._at(repo_id, revision)
        return [
            {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
            for name, content in files.items()
        ]

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers at its ``url`` until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    hub = Hub()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
