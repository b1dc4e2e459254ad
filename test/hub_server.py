"""Small Hugging Face Hubs on this machine, for the tests that download and upload."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import yaml


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of huggingface.co as a download needs. Repositories whose name is an error code answer with it."""

    files: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.requests.append(self.path)
        repository, name = self.path.removeprefix("/lab/").split("/resolve/main/")
        if not self.path.startswith("/lab/"):
            return self._send(401, {"X-Error-Code": "RepoNotFound"})
        if repository in ("GatedRepo", "RepoNotFound"):
            return self._send(401, {"X-Error-Code": repository})
        if repository == "EntryNotFound" and name != "config.json":
            return self._send(404, {"X-Error-Code": repository})
        if repository == "Broken":
            return self._send(500, {})
        if not (self.files / name).is_file():
            return self._send(404, {"X-Error-Code": "EntryNotFound"})
        content = (self.files / name).read_bytes()
        headers = {"ETag": f'"{hash(content):x}"', "X-Repo-Commit": "0" * 40, "Content-Length": str(len(content))}
        return self._send(200, headers, content if with_body else b"")

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": "0", **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Repository:
    """A repository: its commits, and the branches that lead to them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Replace the files of a branch; the name of the commit."""
        name = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class SharingHub(http.server.BaseHTTPRequestHandler):
    """As much of huggingface.co as it takes to share: repositories are made, written by commits, and read.

    Who sends the token ``writer`` may write below ``lab/``, and read what is private. Nobody may read what is gated.
    Files that end as weights do go through the LFS protocol.
    """

    repositories: dict[str, Repository]
    stored: dict[str, bytes]
    requests: list[str]

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{method} {path}")
        self._body = self._read_body()
        for verb, pattern, answer in (
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate),
            ("POST", r"/api/models/(\w+/[\w.-]+)/branch/(.+)", self._branch),
            ("POST", r"/api/models/(\w+/[\w.-]+)/preupload/(.+)", self._preupload),
            ("POST", r"/api/models/(\w+/[\w.-]+)/commit/(.+)", self._commit),
            ("POST", r"/(\w+/[\w.-]+).git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/lfs/(\w+)", self._store),
            ("GET", r"/api/models/(\w+/[\w.-]+)(?:/revision/(.+))?", self._info),
            ("GET", r"/api/models/(\w+/[\w.-]+)/refs", self._refs),
            ("GET", r"/api/models/(\w+/[\w.-]+)/tree/(.+)", self._tree),
            ("HEAD", r"/(\w+/[\w.-]+)/resolve/([^/]+)/(.+)", self._resolve),
            ("GET", r"/(\w+/[\w.-]+)/resolve/([^/]+)/(.+)", self._resolve),
        ):
            found = re.fullmatch(pattern, path)
            if verb == method and found:
                is_write = method == "POST" and answer != self._validate
                if is_write and not self._may_write(found[1] if found.groups() else "lab/"):
                    return None
                return answer(*found.groups())
        return self._send(404)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _knows_you(self) -> bool:
        return self.headers.get("Authorization") == "Bearer writer"

    def _may_write(self, repository: str) -> bool:
        allowed = self._knows_you() and repository.startswith("lab/")
        if not allowed:
            self._send(403 if self._knows_you() else 401)
        return allowed

    def _create(self) -> None:
        wanted = json.loads(self._body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != "lab":
            return self._send(403)
        if name in self.repositories:
            return self._send(409, {"url": f"/{name}"})
        made = Repository(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        made.commit({".gitattributes": b""})
        self.repositories[name] = made
        return self._send(200, {"url": f"/{name}"})

    def _validate(self) -> None:
        metadata = json.loads(self._body)["content"].split("---")[1]
        wrong = not isinstance(yaml.safe_load(metadata), dict)
        self._send(400 if wrong else 200, {"errors": [{"message": "no mapping"}] if wrong else [], "warnings": []})

    def _branch(self, name: str, branch: str) -> None:
        repository = self.repositories[name]
        known = branch in repository.branches
        repository.branches.setdefault(branch, repository.branches["main"])
        self._send(409 if known else 200, {})

    def _preupload(self, name: str, revision: str) -> None:
        large = (".safetensors", ".onnx", ".npz", ".png")
        modes = {
            file["path"]: "lfs" if file["path"].endswith(large) else "regular"
            for file in json.loads(self._body)["files"]
        }
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        self._send(200, {"files": files})

    def _batch(self, name: str) -> None:
        host = self.headers["Host"]
        objects = [
            {**wanted, "actions": {"upload": {"href": f"http://{host}/lfs/{wanted['oid']}"}}}
            for wanted in json.loads(self._body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _store(self, digest: str) -> None:
        whole = hashlib.sha256(self._body).hexdigest() == digest
        self.stored[digest] = self._body
        self._send(200 if whole else 400, {})

    def _commit(self, name: str, branch: str) -> None:
        repository = self.repositories[name]
        files = dict(repository.files(branch))
        for line in self._body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files, branch)
        self._send(200, {"commitUrl": f"/{name}/commit/{commit}", "commitOid": commit})

    def _info(self, name: str, revision: str | None = None) -> None:
        repository = self._visible(name, revision or "main")
        if repository is not None:
            commit = repository.branches.get(revision or "main", revision)
            siblings = [{"rfilename": path} for path in repository.files(revision or "main")]
            gated = "manual" if repository.gated else False
            about = {"id": name, "sha": commit, "siblings": siblings, "private": repository.private, "gated": gated}
            self._send(200, about)

    def _refs(self, name: str) -> None:
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit}
            for branch, commit in self.repositories[name].branches.items()
        ]
        self._send(200, {"branches": branches, "converts": [], "tags": []})

    def _tree(self, name: str, revision: str) -> None:
        repository = self._visible(name, revision)
        if repository is not None:
            self._send(
                200,
                [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in repository.files(revision).items()
                ],
            )

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._visible(name, revision)
        if repository is None:
            return None
        if repository.gated:
            return self._send(403, code="GatedRepo")
        commit = repository.branches.get(revision, revision)
        content = repository.files(commit).get(path)
        if content is None:
            return self._send(404, code="EntryNotFound", commit=commit)
        return self._send(200, content, commit=commit)

    def _visible(self, name: str, revision: str) -> Repository | None:
        repository = self.repositories.get(name)
        if repository is None or (repository.private and not self._knows_you()):
            self._send(401 if not self._knows_you() else 404, code="RepoNotFound")
            return None
        if revision not in {*repository.branches, *repository.commits}:
            self._send(404, code="RevisionNotFound")
            return None
        return repository

    def _send(self, status: int, content: object = b"", code: str | None = None, commit: str | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "X-Error-Code": code, "X-Repo-Commit": commit}
        if commit is not None:
            headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        for key, value in headers.items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(handler: type) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def point_the_hub_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment variable HF_ENDPOINT does, for a huggingface_hub that is already imported."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
