"""What a gateway tells of the swarm in the comments of its streams (`clients.gateway.sse`), as happenings.

It comes from elsewhere: what is malformed is passed over, and texts are made plain.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from clients.terminal.backend import ChainNow, Happening, HopNow, Lost, Pace, Pausing
from swarm.terminal import plain

__all__ = ["Comments"]

NAME, REASON = 24, 300  # characters that are shown
MOST_HOPS = 4096


class Comments:
    """Of one stream."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # of peers, by their ids

    def read(self, said: Mapping[str, Any]) -> Iterator[Happening]:
        match said:
            case {"event": "chain", "hops": [*hops]} if all(isinstance(hop, dict) for hop in hops):
                self._names |= {str(hop.get("peer")): _text(hop.get("name"), NAME) for hop in hops[:MOST_HOPS]}
                chain = tuple(HopNow(_text(hop.get("name"), NAME), _blocks(hop)) for hop in hops[:MOST_HOPS])
                yield ChainNow(chain, _number(said.get("seconds")), mended=bool(said.get("lost")))
            case {"event": "lost", "peer": str(peer)}:
                name = self._names.get(peer) or _text(peer[-8:], NAME)
                yield Lost(name, _text(said.get("reason"), REASON))
            case {"event": "waiting"}:
                yield Pausing(_text(said.get("reason"), REASON), _number(said.get("seconds")))
            case {"event": "step", "ms": int() | float() as ms, "hops": [*hops]}:
                spent = (sum(map(_number, hop)) if isinstance(hop, list) else 0.0 for hop in hops[:MOST_HOPS])
                yield Pace(ms / 1000, tuple(each / 1000 for each in spent))


def _text(value: object, limit: int) -> str:
    return plain(value, limit) if isinstance(value, str) else "?"


def _blocks(hop: Mapping[str, Any]) -> str:
    match hop.get("blocks"):
        case [int(start), int(end)]:
            return f"{start}:{end}"
    return ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
