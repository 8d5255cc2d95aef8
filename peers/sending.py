"""Outputs of a hop → the frames that carry them on: Steps to the next hop, or Outs to the client."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from peers.hop_session import Aside, HopSession
from peers.work import Passed, pick
from swarm.codecs import body_size, encode
from swarm.ids import PeerId, SessionId
from swarm.messages import MAX_KEYS, Out, PageKeys, Step, StepRow

__all__ = ["aside_frame", "frames", "tokens_per_frame"]


def tokens_per_frame(codec: str, hidden_size: int, frame_bytes: int) -> int:
    return max(1, frame_bytes // body_size(codec, 1, hidden_size))


def frames(
    session: HopSession, rows: tuple[StepRow, ...], outputs: Tensor, passed: Passed, frame_bytes: int
) -> Iterator[tuple[PeerId, bytes]]:
    """What of `outputs` `[sum n, hidden]` is to be sent, in frames with bodies of at most `frame_bytes`, and to whom.

    Not sent is what the next hop has already, and by the last hop what nobody wants.
    """
    kept, parts = _wanted(session, rows)
    if not kept:
        return
    outputs = pick(outputs, parts)
    most = tokens_per_frame(session.codec, outputs.shape[1], frame_bytes)
    begin = 0
    for group in _groups(kept, most):
        tokens = sum(row.n for row in group)
        yield _frame(session, group, encode(outputs[begin : begin + tokens], session.codec), passed)
        begin += tokens


def _wanted(session: HopSession, rows: tuple[StepRow, ...]) -> tuple[list[StepRow], list[slice]]:
    """The rows from where they are to be sent, and where these tokens lie in the outputs."""
    kept: list[StepRow] = []
    parts: list[slice] = []
    begin = 0
    for row in rows:
        start = max(row.at, session.sent.get(row.row, 0), row.want if session.next is None else 0)
        skipped = start - row.at
        if skipped < row.n:
            kept.append(replace(row, at=start, n=row.n - skipped))
            parts.append(slice(begin + skipped, begin + row.n))
        begin += row.n
    return kept, parts


def _groups(rows: list[StepRow], most: int) -> Iterator[tuple[StepRow, ...]]:
    """The same tokens in groups of at most `most`; long rows are cut."""
    group: list[StepRow] = []
    room = most
    for row in rows:
        left = row
        while left.n:
            taken = min(left.n, room)
            group.append(replace(left, n=taken))
            left = replace(left, at=left.at + taken, n=left.n - taken)
            room -= taken
            if not room:
                yield tuple(group)
                group, room = [], most
    if group:
        yield tuple(group)


def _frame(
    session: HopSession, rows: tuple[StepRow, ...], body: bytes | memoryview, passed: Passed
) -> tuple[PeerId, bytes]:
    if session.next is None:
        wanted = tuple(replace(row, want=row.at) for row in rows)
        return session.owner, Out(session.id, wanted, session.codec, body, passed.trace, passed.depths).pack()
    return session.next.peer, _step(session, session.sends_as, rows, body, passed)


def aside_frame(session: HopSession, aside: Aside, rows: tuple[StepRow, ...], outputs: Tensor) -> tuple[PeerId, bytes]:
    """The same for whoever is to take over from the next hop; all of it, which fits into one frame."""
    return aside.to.peer, _step(session, aside.session, rows, encode(outputs, session.codec), Passed())


def _step(
    session: HopSession, named: SessionId, rows: tuple[StepRow, ...], body: bytes | memoryview, passed: Passed
) -> bytes:
    size = session.kv.pool.page_size if session.root is not None else 0
    pages = tuple(_named(session, rows))
    return Step(named, rows, session.codec, body, passed.trace, passed.depths, page_size=size, pages=pages).pack()


def _named(session: HopSession, rows: tuple[StepRow, ...]) -> Iterator[PageKeys]:
    """The keys of the pages that end within `rows`, so that the next hop may find its own."""
    size, room = session.kv.pool.page_size, MAX_KEYS
    for row in rows:
        first, stop = row.at // size, min((row.at + row.n) // size, row.at // size + room)
        keys = session.keys[row.row].pages(first, stop) if first < stop and row.row in session.keys else ()
        if keys:
            room -= len(keys)
            yield PageKeys(row.row, first, tuple(keys))
