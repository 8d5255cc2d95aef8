"""A server of the OpenAI API that says what it was told to, byte by byte, as gateways and strangers do."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

from clients.gateway.sse import DONE, data

LIMIT = 30.0  # seconds to wait for a client to go


@dataclass(frozen=True)
class Said:
    """One answer to one POST."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    hold: bool = False  # go on as if more were to come, until the client has gone


@dataclass
class Scripted:
    """`script`: the answers to POSTs in order, the last one again and again. `asked`: their bodies."""

    script: Sequence[Said]
    models: object = field(default_factory=lambda: {"data": [{"id": "tiny"}, {"id": "other"}]})
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""
    gone: Event = field(default_factory=Event)  # set when a client has left an answer that was held


def chunk(text: str = "", reason: str | None = None) -> bytes:
    return data({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]})


def usage(prompt: int, cached: int, tokens: int) -> bytes:
    details = {"prompt_tokens": prompt, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": cached}}
    return data({"choices": [], "usage": details})


def whole(*texts: str) -> Said:
    return Said(b"".join(map(chunk, texts)) + chunk(reason="stop") + usage(9, 4, len(texts)) + DONE)


def refusal(status: int, message: str, *headers: tuple[str, str]) -> Said:
    return Said(json.dumps({"error": {"message": message}}).encode(), status, headers)


@contextmanager
def scripted(*script: Said, models: object = None) -> Iterator[Scripted]:
    state = Scripted(script) if models is None else Scripted(script, models)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Scripted

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        self.state.keys.append(self.headers.get("Authorization"))
        self._send(Said(json.dumps(self.state.models).encode()))

    def do_POST(self) -> None:
        self.state.keys.append(self.headers.get("Authorization"))
        self.state.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._send(self.state.script[min(len(self.state.asked), len(self.state.script)) - 1])

    def _send(self, said: Said) -> None:
        self.send_response(said.status)
        for name, value in said.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said.body)
        if said.hold:
            self.wfile.flush()
            self.connection.settimeout(LIMIT)
            with suppress(ConnectionError):
                self.connection.recv(1)
            self.state.gone.set()
