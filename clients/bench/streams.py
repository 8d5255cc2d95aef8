"""Streamed answers of a gateway, timed: as its clients have them, at as little cost to this machine as can be."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from swarm.errors import NetworkError

__all__ = ["Stream", "stream", "stream_rate", "streams"]

LINE_BYTES = 1 << 20
SECONDS = 600.0  # for a whole answer


@dataclass(frozen=True, slots=True)
class Stream:
    """`at`: when each piece of `text` came; several tokens can be in one, where only together they make a character.
    Seconds on one clock."""

    begun: float
    at: tuple[float, ...]
    text: str
    tokens: int

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.at[0] - self.begun


def stream_rate(answers: Sequence[Stream]) -> float:
    """Tokens per second of all together, from the earliest first piece to the end; first tokens don't count."""
    tokens = sum(answer.tokens - 1 for answer in answers)
    return tokens / (max(a.at[-1] for a in answers) - min(a.at[0] for a in answers))


def streams(base_url: str, path: str, bodies: Sequence[dict[str, Any]]) -> list[Stream]:
    """All of `bodies` at once, each a request without "stream". Raises NetworkError for one that is not answered."""

    async def main() -> list[Stream]:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(stream(base_url, path, body)) for body in bodies]
        return [one.result() for one in asked]

    try:
        return asyncio.run(main())
    except* NetworkError as errors:
        raise errors.exceptions[0] from None


async def stream(base_url: str, path: str, body: dict[str, Any]) -> Stream:
    """Raises NetworkError for one that is not answered."""
    parts = urlsplit(base_url)
    content = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST {parts.path}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=LINE_BYTES)
    begun = time.perf_counter()
    try:
        async with asyncio.timeout(SECONDS):
            writer.write(f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
            return await _read(reader, begun)
    except (OSError, TimeoutError, ValueError) as error:
        raise NetworkError(f"the gateway's answer broke off: {error!r}") from error
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, begun: float) -> Stream:
    status = await reader.readline()
    at: list[float] = []
    texts: list[str] = []
    tokens = 0
    async for line in reader:
        if b" 200 " not in status and line.startswith(b"{"):
            raise NetworkError(f"the gateway refused: {line.decode(errors='replace').strip()}")
        if not line.startswith(b"data: {"):
            continue
        said = json.loads(line[len(b"data: ") :])
        if "error" in said:
            raise NetworkError(f"the gateway gave up: {said['error']['message']}")
        tokens = (said.get("usage") or {}).get("completion_tokens", tokens)
        for choice in said["choices"]:
            text = choice["text"] if "text" in choice else choice["delta"].get("content")
            if text:
                at.append(time.perf_counter())
                texts.append(text)
    if not at:
        raise NetworkError(f"the gateway answered nothing: {status.decode(errors='replace').strip()}")
    return Stream(begun, tuple(at), "".join(texts), tokens)
