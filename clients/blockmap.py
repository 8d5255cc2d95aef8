"""Who holds which blocks: the records of a swarm as a picture for people, or as plain data for programs.

Pure: records and a time come in, a renderable or a dictionary comes out. All in a record is what its peer claims;
names and reasons are shown as plain text, and figures that make no sense never get here (`routing.view`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from routing.view import View, newest, runs
from swarm.ids import Digest, Span
from swarm.record import PeerRecord, PeerState
from swarm.terminal import plain

__all__ = ["BlockMap", "as_json", "block_maps", "render"]

MAX_BLOCKS = 10_000  # of one model; no record of a larger one is believed
BAR = 40  # characters of a bar at most; below that, one for each block
_STYLES = {
    PeerState.JOINING: "yellow",
    PeerState.ONLINE: "green",
    PeerState.DRAINING: "magenta",
    PeerState.OFFLINE: "bright_black",
}


@dataclass(frozen=True)
class BlockMap:
    """One model of a swarm: `peers` by where their spans begin, offline ones included."""

    name: str
    view: View
    peers: tuple[PeerRecord, ...]

    @classmethod
    def of(cls, model: Digest, records: Sequence[PeerRecord], now: float) -> Self:
        """Of records that agree on the digest; where they differ on the rest of the model, most of them are right."""
        num_blocks = Counter(record.num_blocks for record in records).most_common(1)[0][0]
        name = Counter(record.model_name for record in records).most_common(1)[0][0]
        peers = newest(records, model=model, num_blocks=num_blocks, now=now)
        view = View.of(records, model=model, num_blocks=num_blocks, now=now)
        return cls(name, view, tuple(sorted(peers, key=lambda record: (record.span, record.peer))))

    @property
    def num_blocks(self) -> int:
        return self.view.num_blocks

    @cached_property
    def missing(self) -> tuple[Span, ...]:
        return runs(self.view.missing(Span(0, self.num_blocks)))


def block_maps(records: Iterable[PeerRecord], now: float) -> tuple[BlockMap, ...]:
    """The models that live records speak of, by name."""
    by_model: dict[Digest, list[PeerRecord]] = defaultdict(list)
    for record in records:
        if record.expires > now and 0 < record.num_blocks <= MAX_BLOCKS:
            by_model[record.model].append(record)
    maps = (BlockMap.of(model, found, now) for model, found in by_model.items())
    return tuple(sorted((m for m in maps if m.peers), key=lambda m: (m.name, m.view.model)))


# --- for programs ------------------------------------------------------------------------------------------------


def as_json(records: Iterable[PeerRecord], now: float) -> dict[str, Any]:
    return {"time": now, "models": [_model(found, now) for found in block_maps(records, now)]}


def _model(found: BlockMap, now: float) -> dict[str, Any]:
    return {
        "model": found.name,
        "digest": found.view.model,
        "num_blocks": found.num_blocks,
        "missing": [[span.start, span.end] for span in found.missing],
        "replication": list(found.view.replication()),
        "peers": [_peer(record, now) for record in found.peers],
    }


def _peer(record: PeerRecord, now: float) -> dict[str, Any]:
    return {
        "peer_id": record.peer,
        "public_name": record.public_name,
        "addresses": list(record.contact.addresses),
        "state": str(record.state),
        "blocks": [record.span.start, record.span.end],
        "throughput": record.throughput,
        "prefill": record.prefill,
        "cache_left": record.cache_left,
        "queue": record.queue,
        "precision": record.precision,
        "version": record.version,
        "reason": record.reason,
        "age": max(0.0, now - record.issued),
        "expires_in": record.expires - now,
    }


# --- for people --------------------------------------------------------------------------------------------------


def render(records: Iterable[PeerRecord], now: float) -> RenderableType:
    maps = block_maps(records, now)
    if not maps:
        return Text("No peer serves anything in this swarm.")
    return Group(*(part for found in maps for part in _picture(found, now)))


def _picture(found: BlockMap, now: float) -> Iterator[RenderableType]:
    yield Text.assemble(_title(found), "\n")
    for record in found.peers:
        yield _headline(record, found.num_blocks)
        yield Padding(_details(record, now), (0, 0, 0, 4))
    yield Text.assemble("\n", _replication(found), ("  online peers on each block", "bright_black"), "\n")


def _title(found: BlockMap) -> Text:
    online = sum(record.state is PeerState.ONLINE for record in found.peers)
    title = Text.assemble((plain(found.name, 80), "bold"), f" · {found.num_blocks} blocks · {online} online · ")
    if found.missing:
        return title.append(f"missing blocks {', '.join(map(str, found.missing))}", "bold red")
    least = min(found.view.replication())
    return title.append(f"every block stands {_times(least)}", "green" if least > 1 else "yellow")


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times") if count < 3 else f"at least {count} times"


def _headline(record: PeerRecord, num_blocks: int) -> Text:
    style = _STYLES[record.state]
    return Text.assemble(
        (_bar(record.span, num_blocks), style),
        f"  {record.span!s:<{2 * len(str(num_blocks)) + 1}}  ",
        (f"{record.state:<8}  ", style),
        (plain(record.public_name, 24), "bold"),
        f" …{plain(record.peer[-8:])}",
    )


def _details(record: PeerRecord, now: float) -> Text:
    figures = (
        f"{record.throughput:.3g} tok/s",
        f"cache left {record.cache_left:,}",
        f"queue {record.queue}",
        plain(record.precision, 16),
        f"version {plain(record.version, 16)}",
        f"{max(0.0, now - record.issued):.0f} s old",
    )
    return Text(" · ".join(figures) + "\n" + plain(record.reason, 200), "bright_black")


def _cells(num_blocks: int) -> tuple[Span, ...]:
    """The blocks behind each character of a bar."""
    width = min(BAR, num_blocks)
    return tuple(Span(i * num_blocks // width, (i + 1) * num_blocks // width) for i in range(width))


def _bar(span: Span, num_blocks: int) -> str:
    """Full where all of a character's blocks are held, half where some are."""
    held = (len(range(max(c.start, span.start), min(c.end, span.end))) / len(c) for c in _cells(num_blocks))
    return "".join("█" if part == 1 else "▒" if part else "·" for part in held)


def _replication(found: BlockMap) -> Text:
    counts = found.view.replication()
    least = [min(counts[cell.start : cell.end]) for cell in _cells(found.num_blocks)]
    text = Text()
    for count in least:
        text.append(str(count) if count < 10 else "+", "red" if count == 0 else "yellow" if count == 1 else "green")
    return text
