"""Data sets on the hub: real requests of the real client to a local server that answers as the hub does."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import pytest

from mplus_cli.data.building.documents import Running, Selection, build_documents
from tests.data.building.conftest import build_rows

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """One data set, `someone/pajama`, at one commit, whose files are those of a folder."""

    folder = None
    requests: list[str] = []

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.requests.append(path)
        files = {p.relative_to(self.folder).as_posix(): p for p in self.folder.rglob("*") if p.is_file()}
        if path in ("/api/datasets/someone/pajama", f"/api/datasets/someone/pajama/revision/{SHA}") or path.endswith(
            "/revision/main"
        ):
            info = {"id": "someone/pajama", "sha": SHA, "cardData": {"license": "apache-2.0"}, "siblings": []}
            self._send(json.dumps(info).encode())
        elif f"/tree/{SHA}" in path:
            entries = [
                {"type": "file", "path": name, "size": p.stat().st_size, "oid": "0" * 40} for name, p in files.items()
            ]
            self._send(json.dumps(entries).encode())
        elif f"/paths-info/{SHA}" in path:
            self._send(b"[]")
        elif f"/resolve/{SHA}/" in path and (name := path.split(f"/resolve/{SHA}/")[1]) in files:
            self._send(files[name].read_bytes(), "application/octet-stream")
        else:
            self._send(b"{}", status=404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        from urllib.parse import parse_qs

        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        found = [
            {"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": "0" * 40}
            for name in wanted
            if (self.folder / name).is_file()
        ]
        self._send(json.dumps(found).encode())

    def _send(self, body: bytes, kind: str = "application/json", status: int = 200) -> None:
        total, span = len(body), self.headers.get("Range")
        if span and status == 200:
            start, _, end = span.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end) if end else total - 1, total - 1)
            body, status = body[first : last + 1], 206
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"etag"')
        self.send_header("X-Repo-Commit", SHA)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(corpus, monkeypatch, tmp_path):
    """The hub's client reads its address when it is imported: the builds run as commands of their own."""
    Hub.folder, Hub.requests = corpus, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield server
    server.shutdown()


def test_a_build_from_the_hub_is_the_build_from_a_copy(tmp_path, hub, corpus, tokenizer_file):
    from tests.commands.helpers import process

    out = tmp_path / "hub"
    arguments = ["build-data", "slimpajama", "--out", out, "--source", "someone/pajama", "--tokenizer", tokenizer_file]
    with process([*arguments, "--edges", "256,1k", "--processes", 1, "--json"]) as command:
        printed, err = command.communicate(timeout=60)
    assert command.returncode == 0, err
    source = json.loads(printed)["sources"][0]
    assert (source["name"], source["revision"], source["licence"]) == ("someone/pajama", SHA, "apache-2.0")
    assert any(f"/resolve/{SHA}/" in path for path in Hub.requests), "files are read at the pinned commit"
    local = Selection("slimpajama", str(corpus), tokenizer=str(tokenizer_file), edges=(256, 1024), quota=200_000)
    build_documents(tmp_path / "local", local, Running(processes=1))
    assert build_rows(out) == build_rows(tmp_path / "local")
