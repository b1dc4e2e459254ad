"""A small Hugging Face Hub on this machine, for the tests that download."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest


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
