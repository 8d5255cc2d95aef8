"""Server-sent events: the lines of a stream, what it tells beside the answer, and how it ends."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.responses import StreamingResponse

from clients.events import ChainChanged, Event, Excluded, PeerLost, Step, Waiting
from clients.gateway.errors import ApiError, from_swarm
from clients.gateway.served import NAME_LENGTH
from routing.chains import Hop
from swarm.errors import SwarmError
from swarm.terminal import plain

__all__ = ["DONE", "SwarmComments", "comment", "data", "event", "stream"]

_log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
BEGIN = 1.0  # seconds that the head of a response waits for its first event
KEEP_ALIVE = 5.0  # seconds without a line after which a comment shows that we live
STEPS_EVERY = 0.5  # seconds between two comments on the times of hops


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def data(value: Any) -> bytes:
    """An event of OpenAI's streams."""
    return b"data: " + _json(value) + b"\n\n"


def event(name: str, value: Any) -> bytes:
    """An event with a name, as in Anthropic's streams and those of responses."""
    return b"event: " + name.encode() + b"\ndata: " + _json(value) + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip."""
    return b": " + " ".join(text.splitlines()).encode() + b"\n\n"


class SwarmComments:
    """What the swarm does for an answer, as comments `: swarm {json}`. The objects have a field "event":

    - "chain": "hops", each with "peer", "name", "blocks" [start, end) and "precision"; "lost", peers that
      were replaced; "seconds" it took, "reason"
    - "lost": "peer", "reason"
    - "waiting": "reason", "seconds" until it is tried again
    - "step": "ms" of one step, "hops" with [ms in the queue, ms computing] of each; some of them, not all
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_step = 0.0

    def of(self, happened: Event) -> bytes:
        """Empty for what is not worth a line now."""
        if isinstance(happened, Step):
            now = self._clock()
            if now < self._next_step:
                return b""
            self._next_step = now + STEPS_EVERY
        return comment("swarm " + _json(_describe(happened)).decode())


def _describe(happened: Event) -> Mapping[str, Any]:
    match happened:
        case ChainChanged():
            return {
                "event": "chain",
                "hops": [_hop(hop) for hop in happened.hops],
                "lost": list(happened.lost),
                "seconds": round(happened.seconds, 3),
                "reason": happened.reason,
            }
        case PeerLost() | Excluded():
            return {"event": "lost", "peer": happened.peer, "reason": happened.reason}
        case Waiting():
            return {"event": "waiting", "reason": happened.reason, "seconds": round(happened.seconds, 3)}
        case Step():
            hops_ms = [[round(queue, 2), round(compute, 2)] for queue, compute in happened.trace]
            return {"event": "step", "ms": round(happened.seconds * 1000, 2), "hops": hops_ms}


def _hop(hop: Hop) -> Mapping[str, Any]:
    """Its name was chosen by a stranger: made plain here, to be escaped by whoever shows it."""
    return {
        "peer": hop.peer,
        "name": plain(hop.name, NAME_LENGTH) or hop.peer[-8:],
        "blocks": [hop.span.start, hop.span.end],
        "precision": hop.precision,
    }


Lines = AsyncGenerator[bytes, None]


async def stream(
    lines: Lines, *, failed: Callable[[ApiError], bytes], begin: float = BEGIN, keep_alive: float = KEEP_ALIVE
) -> StreamingResponse:
    """A response that sends `lines`. It begins with the first that is no comment, or after `begin` seconds, so what
    fails sooner is raised here and can still be answered by a status. What fails later is told by the line that
    `failed` makes, and ends the stream. While there is nothing to say, a comment goes out every `keep_alive` s."""
    first: list[bytes] = []
    pending = asyncio.ensure_future(anext(lines))
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(begin):
                while not first or first[-1].startswith(b":"):
                    await asyncio.wait({pending})
                    first.append(pending.result())
                    pending = asyncio.ensure_future(anext(lines))
    except BaseException:
        await _let_go(lines, pending)
        raise
    body = _kept_alive(first, lines, pending, failed, keep_alive)
    return StreamingResponse(
        body,
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},  # proxies pass lines on at once
    )


async def _kept_alive(
    first: Sequence[bytes],
    lines: Lines,
    pending: asyncio.Future[bytes],
    failed: Callable[[ApiError], bytes],
    keep_alive: float,
) -> Lines:
    try:
        for line in first:
            yield line
        while True:
            await asyncio.wait({pending}, timeout=keep_alive)
            if not pending.done():
                yield comment("waiting")
                continue
            yield pending.result()
            pending = asyncio.ensure_future(anext(lines))
    except StopAsyncIteration:
        pass
    except SwarmError as error:
        yield failed(from_swarm(error))
    except Exception:
        _log.exception("a stream failed")
        yield failed(ApiError(500, "The gateway failed; its log tells why", code="internal_error"))
    finally:
        await _let_go(lines, pending)


async def _let_go(lines: Lines, pending: asyncio.Future[bytes]) -> None:
    pending.cancel()
    await asyncio.wait({pending})
    if not pending.cancelled():
        pending.exception()  # it was seen, or nobody is there any more to be told
    await lines.aclose()
