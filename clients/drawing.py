"""Who holds which blocks: the records of a swarm as a picture for people, or as plain data for programs.

Pure: records and a time come in, a renderable or a dictionary comes out. All in a record is what its peer claims; names
and reasons are shown as plain text, and figures that make no sense never get here (`routing.view`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from routing.blockmap import BlockMap, PeerRow, block_map
from routing.view import View, newest
from swarm.ids import Digest, Span
from swarm.record import PeerRecord, PeerState
from swarm.terminal import plain

__all__ = ["as_json", "block_maps", "model_as_json", "render"]

BAR = 40  # characters of a bar at most; below that, one for each block
_STYLES = {
    PeerState.JOINING: "yellow",
    PeerState.ONLINE: "green",
    PeerState.DRAINING: "magenta",
    PeerState.PAUSED: "blue",
    PeerState.STANDBY: "cyan",
    PeerState.OFFLINE: "bright_black",
}


def block_maps(records: Iterable[PeerRecord], now: float) -> tuple[BlockMap, ...]:
    """The models that live records speak of, by name."""
    by_model: dict[Digest, list[PeerRecord]] = defaultdict(list)
    for record in records:
        if record.expires > now:
            by_model[record.model].append(record)
    maps = (_map(model, found, now) for model, found in by_model.items())
    return tuple(sorted((m for m in maps if m.peers), key=lambda m: (m.name, m.model)))


def _map(model: Digest, records: Sequence[PeerRecord], now: float) -> BlockMap:
    """Of records that agree on the digest; where they differ on the rest of the model, most of them are right."""
    num_blocks = Counter(record.num_blocks for record in records).most_common(1)[0][0]
    name = Counter(record.model_name for record in records).most_common(1)[0][0]
    peers = newest(records, model=model, num_blocks=num_blocks, now=now)
    view = View.of(peers, model=model, num_blocks=num_blocks, now=now)
    return replace(block_map(view, offline=[r for r in peers if r.state is PeerState.OFFLINE]), name=name)


# --- for programs ------------------------------------------------------------------------------------------------


def as_json(records: Iterable[PeerRecord], now: float) -> dict[str, Any]:
    return {"time": now, "models": [model_as_json(found) for found in block_maps(records, now)]}


def model_as_json(found: BlockMap) -> dict[str, Any]:
    return {
        "model": found.name,
        "digest": found.model,
        "num_blocks": len(found.blocks),
        "missing": [[span.start, span.end] for span in found.missing],
        "replication": [block.replication for block in found.blocks],
        "throughput": found.throughput,
        "weakest": [[span.start, span.end] for span in found.weakest],
        "peers": [_peer(row) for row in found.peers],
    }


def _peer(row: PeerRow) -> dict[str, Any]:
    return {
        "peer_id": row.peer,
        "public_name": row.name,
        "addresses": list(row.addresses),
        "relayed": row.relayed,
        "state": str(row.state),
        "blocks": [row.span.start, row.span.end],
        "throughput": row.throughput,
        "prefill": row.prefill,
        "cache_left": row.cache_left,
        "queue": row.queue,
        "precision": row.precision,
        "version": row.version,
        "reason": row.reason,
        "age": row.age,
        "trains": row.trains,
        "adapters": [{"name": name, "digest": digest} for name, digest in row.adapters],
    }


# --- for people --------------------------------------------------------------------------------------------------


def render(records: Iterable[PeerRecord], now: float) -> RenderableType:
    maps = block_maps(records, now)
    if not maps:
        return Text("No peer serves anything in this swarm.")
    return Group(*(part for found in maps for part in _picture(found)))


def _picture(found: BlockMap) -> Iterator[RenderableType]:
    yield Text.assemble(_title(found), "\n")
    for row in found.peers:
        yield _headline(row, len(found.blocks))
        yield Padding(_details(row), (0, 0, 0, 4))
    yield Text.assemble("\n", _replication(found), ("  online peers on each block", "bright_black"))
    yield Text(_pace(found), "bright_black")


def _title(found: BlockMap) -> Text:
    online = sum(row.state is PeerState.ONLINE for row in found.peers)
    title = Text.assemble((plain(found.name, 80), "bold"), f" · {len(found.blocks)} blocks · {online} online · ")
    if found.missing:
        return title.append(f"missing blocks {', '.join(map(str, found.missing))}", "bold red")
    least = found.replication
    times = {1: "once", 2: "twice"}.get(least, f"at least {least} times")
    title.append(f"every block stands {times}", "green" if least > 1 else "yellow")
    return title


def _pace(found: BlockMap) -> str:
    """What the swarm as a whole can do, and what holds it back."""
    if found.missing:
        return "no tokens go through while blocks are missing\n"
    weakest = ", ".join(map(str, found.weakest))
    return f"{found.throughput:.3g} tok/s go through the weakest blocks, {weakest}\n"


def _headline(row: PeerRow, num_blocks: int) -> Text:
    style = _STYLES[row.state]
    return Text.assemble(
        (_bar(row.span, num_blocks), style),
        f"  {row.span!s:<{2 * len(str(num_blocks)) + 1}}  ",
        (f"{row.state:<8}  ", style),
        (plain(row.name, 24), "bold"),
        f" …{plain(row.peer[-8:])}",
    )


def _details(row: PeerRow) -> Text:
    figures = (
        f"{row.throughput:.3g} tok/s",
        f"cache left {row.cache_left:,}",
        f"queue {row.queue}",
        plain(row.precision, 16),
        f"version {plain(row.version, 16)}",
        f"{row.age:.0f} s old",
        *(["relayed"] if row.relayed else []),
        *([] if row.trains else ["no fine-tuning"]),
    )
    hosted = ", ".join(f"{name}@{digest[:8]}" for name, digest in row.adapters)
    lines = [" · ".join(figures), *([f"hosts adapters {hosted}"] if hosted else []), plain(row.reason, 200)]
    return Text("\n".join(lines), "bright_black")


def _cells(num_blocks: int) -> tuple[Span, ...]:
    """The blocks behind each character of a bar."""
    width = min(BAR, num_blocks)
    return tuple(Span(i * num_blocks // width, (i + 1) * num_blocks // width) for i in range(width))


def _bar(span: Span, num_blocks: int) -> str:
    """Full where all of a character's blocks are held, half where some are."""
    held = (len(range(max(c.start, span.start), min(c.end, span.end))) / len(c) for c in _cells(num_blocks))
    return "".join("█" if part == 1 else "▒" if part else "·" for part in held)


def _replication(found: BlockMap) -> Text:
    """How many peers hold the block that has the fewest, behind each character of a bar."""
    counts = [block.replication for block in found.blocks]
    text = Text()
    for cell in _cells(len(counts)):
        count = min(counts[cell.start : cell.end])
        text.append(str(count) if count < 10 else "+", "red" if count == 0 else "yellow" if count == 1 else "green")
    return text
