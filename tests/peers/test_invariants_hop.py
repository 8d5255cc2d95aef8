"""What holds for a hop whatever is said to it, and in whatever order: hypothesis looks for the counterexample."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peers.engine import Engine
from peers.limits import EngineLimits
from peers.span import BlockSpan
from swarm.codecs import encode
from swarm.ids import PeerId, RowId, SessionId, Span, new_session_id
from swarm.messages import (
    Close,
    Contact,
    Fault,
    FaultCode,
    Fork,
    ForkEntry,
    Message,
    Open,
    PageKeys,
    Ping,
    Relink,
    Resend,
    Step,
    StepRow,
)
from tests.peers.ring import CLIENT, Chain, Clock, Model, Table, make_engine, outputs

WIDTH = 64
PAGE = 4
ALL = Span(0, 4)
FRESH = settings(max_examples=40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def spans(model: Model) -> Sequence[BlockSpan]:
    """Loaded once: engines come and go over them, each of which must leave nothing behind."""
    options = {"dtype": torch.float32, "device": torch.device("cpu"), "kv_tokens": 160, "page_size": PAGE}
    return [BlockSpan.load(model.checkpoint, ALL, **options) for _ in range(4)]  # type: ignore[arg-type]


@contextmanager
def engines(model: Model, spans: Sequence[BlockSpan], **options: object) -> Iterator[list[Engine]]:
    """An engine over each span; in the end all are told that everyone has gone, and no page may be missing."""
    made = [make_engine(model, ALL, span=span, **options) for span in spans]  # type: ignore[arg-type]
    try:
        yield made
    finally:
        for engine in made:
            for peer in PEERS:
                engine.gone(peer)
    for engine, span in zip(made, spans, strict=True):
        stats = engine.stats()
        assert span.pool.free == span.pool.pages
        assert stats.kv_tokens_free == stats.kv_tokens
        assert (stats.sessions, stats.rows, stats.queue_bytes, stats.queue_tokens) == (0, 0, 0, 0)


# --- nothing leaks, nothing breaks ------------------------------------------------------------------------------------

PEERS = [CLIENT, PeerId("other"), PeerId("H1"), PeerId("H2")]
SESSIONS = [SessionId(bytes([n]) * 16) for n in range(3)]

peer_ids = st.sampled_from(PEERS)
session_ids = st.sampled_from(SESSIONS)
row_ids = st.integers(0, 4).map(RowId)
nexts = st.none() | peer_ids.map(Contact)
positions = st.integers(0, 20)


def opens(model: Model) -> st.SearchStrategy[Message]:
    return st.builds(
        Open,
        session=session_ids,
        model=st.just(model.checkpoint.digest),
        hop=st.sampled_from([ALL, Span(1, 3)]),
        codec=st.sampled_from(["fp32", "int8"]),
        prev=peer_ids,
        next=nexts,
        lease=st.integers(0, 200),
        sent=st.dictionaries(row_ids, positions, max_size=2),
        share=st.booleans(),
    )


page_keys = st.lists(st.sampled_from([b"1" * 32, b"2" * 32]), max_size=4).map(tuple)


@st.composite
def steps(draw: st.DrawFn) -> Message:
    rows = draw(st.lists(st.tuples(row_ids, positions, st.integers(1, 30)), min_size=1, max_size=3, unique_by=first))
    entries = tuple(StepRow(row, at, n, draw(positions)) for row, at, n in rows)
    hidden = torch.ones(sum(row.n for row in entries), WIDTH)
    spoiled = draw(st.sampled_from([1.0] * 8 + [math.nan, math.inf]))
    hidden[-1, -1] = spoiled
    body = encode(hidden, "fp32")[: draw(st.sampled_from([None] * 8 + [-1]))]
    pages = draw(st.lists(st.builds(PageKeys, row_ids, st.integers(0, 5), page_keys), max_size=2).map(tuple))
    return Step(draw(session_ids), entries, "fp32", body, page_size=draw(st.sampled_from([0, PAGE, 7])), pages=pages)


def first(entry: tuple[RowId, int, int]) -> RowId:
    return entry[0]


others = st.one_of(
    st.builds(
        Fork,
        session_ids,
        st.lists(st.builds(ForkEntry, row_ids, positions, row_ids), max_size=4).map(tuple),
        st.lists(row_ids, max_size=3).map(tuple),
        st.booleans(),
    ),
    st.builds(
        Relink,
        session_ids,
        st.none() | peer_ids,
        st.booleans(),
        nexts,
        st.lists(st.builds(Resend, row_ids, positions, positions), max_size=3).map(tuple),
    ),
    st.builds(Ping, session_ids, st.integers(0, 9)),
    st.builds(Close, session_ids),
    st.builds(Fault, session_ids, st.sampled_from(FaultCode), st.just("so it is")),
)
events = st.sampled_from(["step"] * 4 + ["wait", "gone"])


@FRESH
@given(data=st.data())
def test_whatever_is_said_nothing_leaks_and_promises_hold(
    model: Model, spans: Sequence[BlockSpan], data: st.DataObject
) -> None:
    frames = st.one_of(opens(model), steps(), steps(), others).map(lambda m: m.pack()) | st.binary(max_size=40)
    clock = Clock()
    limits = EngineLimits(batch_tokens=16, prompt_tokens=6, idle_seconds=5, inbox_frames=6, max_rows_per_session=6)
    with engines(model, spans[:1], outbox_tokens=40, clock=clock, limits=limits) as (engine,):
        for session in SESSIONS[: data.draw(st.integers(0, 3))]:
            message = replace(data.draw(opens(model)), session=session)  # type: ignore[type-var]
            engine.receive(CLIENT, message.pack())
        for frame, sender, event in data.draw(st.lists(st.tuples(frames, peer_ids, events), max_size=40)):
            engine.receive(sender, frame)
            if event == "step":
                engine.step()
                engine.outgoing()
            elif event == "wait":
                clock.now += 2
                engine.expire()
            elif data.draw(st.booleans()):
                engine.gone(sender)
            pool, stats = spans[0].pool, engine.stats()
            assert 0 <= stats.kv_tokens_free <= pool.free_tokens
            assert stats.queue_bytes >= 0
        turns = 0
        while engine.step():
            engine.outgoing()
            turns += 1
            assert turns < 1000


# --- tokens are identical whatever happens on the way -----------------------------------------------------------------


class Client:
    """Does by hand what a session of a client does: steps, forks, and recovery as the protocol describes it."""

    def __init__(self, table: Table, hops: Sequence[tuple[PeerId, Span]], *, share: bool = False) -> None:
        self.table = table
        self.chain = Chain(table, hops, lease=0, share=share).open()
        self.rows: dict[int, Tensor] = {}
        self.found: dict[tuple[int, int], Tensor] = {}
        self.forks: list[Fork] = []

    def add(self, row: int, hidden: Tensor, overlap: int = 0) -> None:
        known = self.rows.get(row, hidden[:0])
        self.rows[row] = torch.cat([known, hidden])
        at = max(0, len(known) - overlap)
        self.note(self.chain.send((row, at, self.rows[row][at:]), want=len(known)))

    def fork(self, src: int, at: int, dst: int, drop: bool) -> None:
        self.rows[dst] = self.rows[src][:at]
        self.found |= {(dst, n): self.found[src, n] for n in range(at) if (src, n) in self.found}
        if drop:
            del self.rows[src]
        frame = Fork(self.chain.ids[0], (ForkEntry(RowId(src), at, RowId(dst)),), (RowId(src),) if drop else ())
        self.forks.append(frame)
        self.note(self.table.say(self.chain.hops[0][0], frame))

    def note(self, messages: Sequence[Message]) -> None:
        self.found |= outputs(messages, WIDTH)

    def recover(self, spares: Sequence[PeerId]) -> None:
        """Unconfirmed forks again; new hops for the dead; every boundary relinked, the last first."""
        hops, ids = list(self.chain.hops), list(self.chain.ids)
        alive = [peer in self.table.engines for peer, _ in hops]
        for index, (peer, _) in enumerate(hops):
            if alive[index]:  # forks of what has been dropped since are answered with gaps, which mean nothing
                for fork in self.forks:
                    self.table.say(peer, replace(fork, session=ids[index], onward=False))
        free = iter(spares)
        for index in range(len(hops)):
            if not alive[index]:
                hops[index], ids[index] = (next(free), hops[index][1]), new_session_id()
        old, self.chain = self.chain, Chain(self.table, hops, lease=0, share=self.chain.share, ids=ids)
        known = [self._positions(index) if alive[index] else {} for index in range(len(hops))]
        for index in range(len(hops)):
            if not alive[index]:
                sent = known[index + 1] if index + 1 < len(hops) else {}
                self.table.say(hops[index][0], self.chain.opening(index, sent=sent))
        for index in reversed(range(len(hops))):
            after = known[index + 1] if index + 1 < len(hops) else {}
            opening = self.chain.opening(index)
            resend = tuple(Resend(RowId(row), after.get(RowId(row), 0), self._want(row)) for row in self.rows)
            relink = Relink(ids[index], opening.prev, True, opening.next, resend, opening.next_session)
            self.note(self.table.say(hops[index][0], relink))
        assert old.hops != self.chain.hops
        for row, hidden in self.rows.items():
            at = known[0].get(RowId(row), 0)
            if at < len(hidden):
                self.note(self.chain.send((row, at, hidden[at:]), want=self._want(row)))

    def _positions(self, index: int) -> dict[RowId, int]:
        pong = self.table.say(self.chain.hops[index][0], Ping(self.chain.ids[index], 0))[-1]
        return dict(pong.rows)  # type: ignore[union-attr]

    def _want(self, row: int) -> int:
        return next(at for at in range(len(self.rows[row]) + 1) if (row, at) not in self.found)

    def check(self) -> None:
        """Every row is all there, and as one process would have it."""
        for row, hidden in self.rows.items():
            if len(hidden):
                got = torch.stack([self.found[row, at] for at in range(len(hidden))])
                torch.testing.assert_close(got, self.table.model.blocks(hidden), rtol=1e-4, atol=1e-4)


actions = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "fork", "kill"]), st.integers(0, 100), st.integers(1, 9), st.integers(0, 9)
    ),
    min_size=1,
    max_size=14,
)
HOPS = [(PeerId("H1"), Span(0, 1)), (PeerId("H2"), Span(1, 3)), (PeerId("H3"), Span(3, 4))]


@FRESH
@given(actions=actions, outbox_tokens=st.sampled_from([400, 400, 8]))
def test_tokens_are_identical_whatever_is_repeated_forked_and_killed(
    model: Model, spans: Sequence[BlockSpan], actions: list[tuple[str, int, int, int]], outbox_tokens: int
) -> None:
    """What is said after a kill is lost at the dead hop; then the chain is mended. With a tiny outbox recovery goes all
    the way up: every hop is replaced, and fed by the client."""
    limits = EngineLimits(batch_tokens=5, prompt_tokens=3, frame_bytes=4 * WIDTH * 4)
    with engines(model, spans[:3], outbox_tokens=outbox_tokens, limits=limits) as made:
        table = Table(model, dict(zip((peer for peer, _ in HOPS), made, strict=True)))
        client = Client(table, HOPS)
        client.add(0, model.row(3))
        spares: dict[PeerId, Engine] = {}
        for seed, (what, which, n, more) in enumerate(actions):
            row = sorted(client.rows)[which % len(client.rows)]
            if what == "add" and len(client.rows[row]) + n < 30:
                client.add(row, model.row(n, seed + 1), overlap=more)
            elif what == "fork" and len(client.rows) < 3:
                client.fork(row, min(more, len(client.rows[row])), 100 + seed, drop=which % 2 == 0)
            elif what == "kill":
                spares |= kill(table, client, (which if outbox_tokens > 8 else 6) % 7 + 1)
                continue
            if spares:
                table.engines |= spares
                client.recover(list(spares))
                spares = {}
        if spares:
            table.engines |= spares
            client.recover(list(spares))
        client.check()
        client.chain.close()


def kill(table: Table, client: Client, which: int) -> dict[PeerId, Engine]:
    """Kills the hops whose bits are set in `which`; returns peers that can take their place, on the same devices."""
    spares: dict[PeerId, Engine] = {}
    for bit, (peer, _) in enumerate(client.chain.hops):
        if which >> bit & 1 and peer in table.engines:
            engine = spares[PeerId(f"{peer}'")] = table.engines.pop(peer)
            engine.gone(CLIENT)  # gives back what the device held
    return spares


openings = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(0, 1), st.integers(0, 24), st.integers(1, 9), st.sampled_from([0, 0, 3, 7])
    ),
    min_size=2,
    max_size=10,
)


@settings(FRESH, max_examples=20)
@given(openings=openings, outbox_tokens=st.sampled_from([400, 60, 8]))
def test_sessions_that_begin_alike_get_what_each_would_get_alone(
    model: Model, spans: Sequence[BlockSpan], openings: list[tuple[int, int, int, int, int]], outbox_tokens: int
) -> None:
    """Up to three at a time begin with parts of one of two texts, for which there is not room for ever. Sometimes hops
    die; then one session is mended, and the others are gone."""
    limits = EngineLimits(batch_tokens=5, prompt_tokens=3, frame_bytes=4 * WIDTH * 4)
    texts = [model.row(24, 98), model.row(24, 99)]
    hops: Sequence[tuple[PeerId, Span]] = HOPS
    with engines(model, spans[:3], outbox_tokens=outbox_tokens, limits=limits) as made:
        table = Table(model, dict(zip((peer for peer, _ in hops), made, strict=True)))
        clients: dict[int, Client] = {}
        for number, (who, text, common, own, killed) in enumerate(openings):
            if who in clients:
                clients.pop(who).chain.close()
            client = clients[who] = Client(table, hops, share=True)
            client.add(0, torch.cat([texts[text][:common], model.row(own, number)]))
            if killed:
                spares = kill(table, client, killed if outbox_tokens == 400 else 7)
                table.engines |= spares
                client.add(0, model.row(3, number + 50))
                client.recover(list(spares))
                hops = client.chain.hops
                for other in clients.keys() - {who}:
                    clients.pop(other).chain.close()
            client.add(0, model.row(1, number + 100))
            client.check()
        for client in clients.values():
            client.chain.close()
