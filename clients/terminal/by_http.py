"""A chat through a gateway: the OpenAI API over HTTP, as much of it as a chat needs.

Comment lines of the stream that begin with `swarm` tell of the chain; servers that send none are fine.
"""

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import httpx2

from clients.terminal.backend import Ended, Happening, Pausing, Text
from clients.terminal.comments import Comments
from clients.terminal.conversation import Choosing, Message
from swarm.errors import Busy, NetworkError, ProtocolError, SwarmError, UsageError
from swarm.terminal import plain

__all__ = ["ByHttp"]

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 120.0  # without a byte; gateways send something all the time
MOST_LINE = 4 << 20  # bytes of one line of a stream
MOST_BODY = 8 << 20  # bytes of an answer that is no stream
FIRST_WAIT = 1.0  # seconds, where a busy gateway does not say when to ask again


class ByHttp:
    """A backend, see `clients.terminal.backend`. `url` as clients of the API are given it, ending in /v1."""

    def __init__(self, url: str, model: str | None, *, api_key: str | None = None, patience: float = 30.0) -> None:
        """`model` None: the first that the gateway lists. `patience`: seconds to go on asking one that is busy. Raises
        SwarmError."""
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--url is the address of a gateway's API, as in http://127.0.0.1:8000/v1, not '{url}'")
        self.url = url.rstrip("/")
        self._patience = patience
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
        )
        try:
            self.model = model or self._first_model()
        except BaseException:
            self._http.close()
            raise

    def answer(self, messages: Sequence[Message], choosing: Choosing) -> Generator[Happening, None, None]:
        body = {
            "model": self.model,
            "messages": [asdict(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": choosing.temperature,
            "top_p": choosing.top_p,
            "max_tokens": choosing.max_new_tokens,
            **({} if choosing.seed is None else {"seed": choosing.seed}),
        }
        give_up = time.monotonic() + self._patience
        while True:
            try:
                yield from self._stream(body)
                return
            except Busy as error:
                if time.monotonic() + error.retry_after > give_up:
                    raise
                yield Pausing(str(error), error.retry_after)
                time.sleep(error.retry_after)

    def models(self) -> tuple[str, ...]:
        """The names of all that the gateway serves. Raises SwarmError."""
        with self._sentences(), self._http.stream("GET", f"{self.url}/models") as response:
            found = self._object(response)
        listed = found.get("data")
        names = [entry.get("id") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        return tuple(plain(name, 200) for name in names if isinstance(name, str))

    def close(self) -> None:
        self._http.close()

    # --- inside ---

    def _first_model(self) -> str:
        names = self.models()
        if not names:
            raise UsageError(f"the gateway at {self.url} serves no model")
        return names[0]

    def _stream(self, body: Mapping[str, Any]) -> Generator[Happening, None, None]:
        ended: Ended | None = None
        comments = Comments()
        with self._sentences(), self._http.stream("POST", f"{self.url}/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise _refusal(response.status_code, response.headers, self._object(response))
            for line in _lines(response.iter_bytes()):
                if line.startswith(b": swarm "):
                    yield from comments.read(_parsed(line.removeprefix(b": swarm ")))
                elif line.startswith(b"data:"):
                    data = line.removeprefix(b"data:").strip()
                    if data == b"[DONE]":
                        break
                    chunk = _parsed(data)
                    if "error" in chunk:
                        raise SwarmError(f"the answer broke off: {_sentence(chunk)}")
                    if text := _content(chunk):
                        yield Text(text)
                    ended = _ended(chunk, ended)
        if ended is None:
            raise NetworkError(f"the gateway at {self.url} ended the answer before it was whole; ask again")
        yield ended

    def _object(self, response: httpx2.Response) -> Mapping[str, Any]:
        """The JSON object in a body; nothing where it holds none."""
        data = b""
        for piece in response.iter_bytes():
            data += piece
            if len(data) > MOST_BODY:
                raise ProtocolError(f"the gateway at {self.url} sent more than {MOST_BODY >> 20} MiB")
        try:
            return _parsed(data)
        except ProtocolError:
            if response.status_code == 200:
                raise
            return {}

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectError as error:
            raise NetworkError(f"nothing answers at {self.url} ({error}); is the gateway running?") from error
        except httpx2.TimeoutException as error:
            raise NetworkError(f"the gateway at {self.url} did not answer in time; ask again") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise NetworkError(f"the gateway at {self.url} can't be asked: {error}") from error


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Raises ProtocolError for a line that never ends."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r")
        if len(rest) > MOST_LINE:
            raise ProtocolError(f"the gateway sent a line of more than {MOST_LINE >> 20} MiB")
    if rest:
        yield rest


def _parsed(data: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ProtocolError("this is no gateway: it sent something else than JSON objects; --url ends in /v1")
    return found


def _choice(chunk: Mapping[str, Any]) -> Mapping[str, Any]:
    match chunk.get("choices"):
        case [dict(choice), *_]:
            return choice
    return {}


def _content(chunk: Mapping[str, Any]) -> str:
    match _choice(chunk).get("delta"):
        case {"content": str(text)}:
            return text
    return ""


def _ended(chunk: Mapping[str, Any], before: Ended | None) -> Ended | None:
    reason = _choice(chunk).get("finish_reason")
    ended = Ended("length" if reason == "length" else "stop") if isinstance(reason, str) else before
    match chunk.get("usage"):
        case {"prompt_tokens": int(prompt), "completion_tokens": int(tokens), **rest}:
            details = rest.get("prompt_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, dict) else None
            return Ended(ended.reason if ended else "stop", prompt, cached if isinstance(cached, int) else None, tokens)
    return ended


def _refusal(status: int, headers: Mapping[str, str], body: Mapping[str, Any]) -> SwarmError:
    said = _sentence(body) or f"it answers with status {status}"
    if status in (429, 503):
        return Busy(f"the gateway is busy: {said}", _seconds(headers.get("retry-after")))
    if status in (401, 403):
        return UsageError(f"the gateway wants another key: {said}; give --api-key or SWARM_API_KEY")
    if 400 <= status < 500:
        return UsageError(f"the gateway refuses: {said}")
    return NetworkError(f"the gateway failed: {said}")


def _seconds(text: str | None) -> float:
    try:
        return max(FIRST_WAIT, float(text or 0))
    except ValueError:  # a date
        return FIRST_WAIT


def _sentence(body: Mapping[str, Any]) -> str:
    match body.get("error"):
        case {"message": str(message)}:
            return plain(message, 500)
        case str(message):
            return plain(message, 500)
    return ""
