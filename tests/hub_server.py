"""As much of the Hugging Face hub as huggingface_hub needs to find and fetch a model, on a local port.

Real HTTP from a real folder: the model's info and file tree, HEAD and GET of files with ETag, commit and ranges;
private repositories answer 401, unknown ones 404. Safetensors files are "large files", known by their sha256.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
OTHER_COMMIT = "decade" + "0" * 34


@dataclass
class HubServer:
    """`revisions`: repository id → name or commit → folder. `fetched`: files whose content went out, in order."""

    revisions: Mapping[str, Mapping[str, Path]]
    private: frozenset[str] = frozenset()
    token: str = "hf_good"
    requests: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def hub_server(
    revisions: Mapping[str, Mapping[str, Path]], *, private: frozenset[str] = frozenset()
) -> Iterator[HubServer]:
    state = HubServer(revisions, private)
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {self.path}")
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path)
        head = re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)
        tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = info or head or tree or file
        if match is None:
            self._refuse(404, "EntryNotFound")
            return
        repo, revision = match[1], "main" if match is head else match[2]
        folder = self._folder(repo, revision)
        if folder is None:
            return
        commit = revision if re.fullmatch(r"[0-9a-f]{40}", revision) else self._commit(repo, folder)
        if file:
            self._file(folder / match[3], commit, body=body)
        elif tree:
            self._json([_tree_entry(path) for path in sorted(folder.iterdir())])
        else:
            siblings = [_sibling(path) for path in sorted(folder.iterdir())]
            self._json({"id": repo, "modelId": repo, "sha": commit, "private": False, "siblings": siblings, "tags": []})

    def _folder(self, repo: str, revision: str) -> Path | None:
        known = self.state.revisions.get(repo)
        allowed = self.headers.get("Authorization") == f"Bearer {self.state.token}"
        if known is None or (repo in self.state.private and not allowed):
            self._refuse(401 if repo in self.state.private else 404, "RepoNotFound")
        elif revision not in known:
            self._refuse(404, "RevisionNotFound")
        else:
            return known[revision]
        return None

    def _commit(self, repo: str, folder: Path) -> str:
        entries = self.state.revisions[repo].items()
        return next(name for name, path in entries if path == folder and re.fullmatch(r"[0-9a-f]{40}", name))

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _file(self, path: Path, commit: str, *, body: bool) -> None:
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        data = path.read_bytes()
        start = int(re.findall(r"\d+", self.headers.get("Range", "bytes=0-"))[0]) if body else 0
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{_etag(path)}"')
        if path.suffix == ".safetensors":
            self.send_header("X-Linked-ETag", f'"{_etag(path)}"')
            self.send_header("X-Linked-Size", str(len(data)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self.state.fetched.append(path.name)
            self.wfile.write(data[start:])


def _etag(path: Path) -> str:
    """sha256 of large files, git's sha1 of others, as on the hub."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _lfs(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        return {}
    return {"lfs": {"sha256": _etag(path), "oid": _etag(path), "size": path.stat().st_size, "pointerSize": 134}}


def _sibling(path: Path) -> dict[str, Any]:
    return {"rfilename": path.name, "size": path.stat().st_size, "blobId": "0" * 40} | _lfs(path)


def _tree_entry(path: Path) -> dict[str, Any]:
    return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40} | _lfs(path)
