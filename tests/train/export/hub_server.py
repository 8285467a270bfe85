"""A small stand-in for the Hugging Face hub: the part of its API that uploads a folder and downloads it by revision."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 34


@dataclass
class Repository:
    """Files by branch, and the commit of each branch."""

    is_private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})

    def commit(self, branch: str) -> str:
        return hashlib.sha1(repr((branch, sorted(self.branches[branch].items()))).encode()).hexdigest()

    def branch_of(self, revision: str) -> str | None:
        names = {self.commit(branch): branch for branch in self.branches} | {branch: branch for branch in self.branches}
        return names.get(revision)


class HubServer(ThreadingHTTPServer):
    """The server; `breaks_off` closes the connection in the middle of a commit."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.tokens: dict[str, str] = {}  # the last one that came with each request
        self.breaks_off = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does, as far as huggingface_hub asks."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        assert isinstance(self.server, HubServer)
        return self.server

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def log_message(self, format: str, *args: Any) -> None:  # nothing on the screen
        pass

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.tokens[self.hub.requests[-1]] = sent
        if sent != TOKEN:
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
            return
        if path.startswith("api/"):
            self._api(path.removeprefix("api/").split("/"), body)
        else:
            self._file(path.split("/"))

    def _api(self, parts: list[str], body: bytes) -> None:
        match parts:
            case ["whoami-v2"]:
                self._answer(200, {"name": "owner", "type": "user", "auth": {}})
            case ["validate-yaml"]:
                self._answer(200, {"errors": [], "warnings": []})
            case ["repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                self.hub.repositories[name] = Repository(asked["visibility"] == "private")
                self._answer(200, {"url": f"{self.hub.address}/{name}"})
            case ["models", owner, name, *rest] if f"{owner}/{name}" in self.hub.repositories:
                self._model(self.hub.repositories[f"{owner}/{name}"], f"{owner}/{name}", rest, body)
            case _:
                self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def _model(self, repository: Repository, name: str, rest: list[str], body: bytes) -> None:
        match rest:
            case [] | ["revision", *_]:
                branch = repository.branch_of("/".join(rest[1:]) or "main")
                if branch is None:
                    self._answer(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
                    return
                files = [{"rfilename": path} for path in repository.branches[branch]]
                facts = {"id": name, "private": repository.is_private, "sha": repository.commit(branch)}
                self._answer(200, {**facts, "siblings": files, "tags": [], "downloads": 0, "likes": 0})
            case ["branch", *branch]:
                repository.branches.setdefault("/".join(branch), dict(repository.branches["main"]))
                self._answer(200, {})
            case ["preupload", *_]:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(body)["files"]
                ]
                self._answer(200, {"files": files})
            case ["commit", *branch]:
                self._commit(repository, name, "/".join(branch), body)
            case ["tree", *revision] if (branch := repository.branch_of("/".join(revision))) is not None:
                files = repository.branches[branch].items()
                facts = [{"type": "file", "path": path, "size": len(text), "oid": "0" * 40} for path, text in files]
                self._send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})
            case ["tree", *_]:
                self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            case _:
                self._answer(404, {"error": f"unknown: {rest}"})

    def _commit(self, repository: Repository, name: str, branch: str, body: bytes) -> None:
        if self.hub.breaks_off:
            self.close_connection = True
            self.connection.close()
            return
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "deletedFile":
                del repository.branches[branch][line["value"]["path"]]
            elif line["key"] == "file":
                repository.branches[branch][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = repository.commit(branch)
        url = f"{self.hub.address}/{name}/commit/{commit}"
        self._answer(200, {"commitUrl": url, "commitOid": commit, "hookOutput": ""})

    def _file(self, parts: list[str]) -> None:
        repository = self.hub.repositories.get("/".join(parts[:2]))
        for end in range(4, len(parts)):  # a branch may contain slashes
            branch = repository.branch_of("/".join(parts[3:end])) if repository is not None else None
            if repository is not None and branch is not None:
                content = repository.branches[branch].get("/".join(parts[end:]))
                headers = {"X-Repo-Commit": repository.commit(branch)}
                if content is None:
                    self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", **headers})
                else:
                    self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', **headers})
                return
        self._answer(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})

    def _answer(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        message = {"X-Error-Message": str(content["error"])} if "error" in content else {}
        self._send(
            status, json.dumps(content).encode(), {"Content-Type": "application/json", **message, **(headers or {})}
        )

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub() -> Iterator[HubServer]:
    """Run a server in a thread."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
