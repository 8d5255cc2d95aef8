"""A hop's side of sessions, on a table: two or three engines over a tiny model, frames carried by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from peers.changes import Change
from peers.engine import TRAINING_TURN
from peers.limits import EngineLimits
from peers.span import BlockSpan, RowSlice
from peers.training.desk import TrainingDesk
from peers.training.limits import TrainingLimits
from peers.training.trainee import Trainee
from swarm.codecs import encode
from swarm.ids import Digest, PeerId, RowId, Span, new_session_id
from swarm.messages import (
    Busy,
    Close,
    Contact,
    Fault,
    FaultCode,
    Fork,
    ForkEntry,
    Message,
    Open,
    Out,
    Ping,
    Pong,
    Ready,
    Relink,
    Resend,
    Step,
    StepRow,
    parse,
)
from swarm.training import Forward, MicroBatch, Passed, Train
from tests.peers.ring import CLIENT, Chain, Clock, Model, Table, make_engine, outputs, row_of

A, B, C, STRANGER = PeerId("A"), PeerId("B"), PeerId("C"), PeerId("stranger")
HEAD, TAIL, ALL = Span(0, 2), Span(2, 4), Span(0, 4)
WIDTH = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


@pytest.fixture
def table(model: Model) -> Table:
    """A has blocks 0:2, B and C have all."""
    return Table(model, {A: make_engine(model, HEAD), B: make_engine(model, ALL), C: make_engine(model, ALL)})


@pytest.fixture
def chain(table: Table) -> Chain:
    return Chain(table, [(A, HEAD), (B, TAIL)]).open()


def one_hop(table: Table, peer: PeerId = B, lease: int = 64, **changes: object) -> Chain:
    chain = Chain(table, [(peer, ALL)], lease=lease)
    table.say(peer, chain.opening(0, **changes))
    return chain


def close_enough(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def faults(messages: Sequence[object]) -> list[tuple[FaultCode, PeerId | None]]:
    return [(m.code, m.peer) for m in messages if isinstance(m, Fault)]


class Failing(BlockSpan):
    """A real span, until told to fail at rows of a certain length or to make NaN of them."""

    fail_at = -1
    nan_at = -1

    def forward(
        self,
        hidden: Tensor,
        rows: Sequence[RowSlice],
        layers: slice | None = None,
        adapted: Sequence[Sequence[Change]] = (),
    ) -> Tensor:
        if any(row.n == self.fail_at for row in rows):
            raise RuntimeError("the device is on fire")
        result = super().forward(hidden, rows, layers, adapted).clone()
        begin = 0
        for row in rows:
            if row.n == self.nan_at:
                result[begin] = math.nan
            begin += row.n
        return result


def failing_span(model: Model) -> Failing:
    return Failing.load(
        model.checkpoint, ALL, dtype=torch.float32, device=torch.device("cpu"), kv_tokens=512, page_size=8
    )


# --- computing --------------------------------------------------------------------------------------------------------


def test_a_chain_gives_what_the_model_gives_in_one_process(model: Model, chain: Chain) -> None:
    first, second = model.row(20, 1), model.row(9, 2)
    found = outputs(chain.send((0, 0, first[:13]), (1, 0, second[:4])), WIDTH)
    for at in range(13, 20):
        found |= outputs(chain.send((0, at, first[at : at + 1])), WIDTH)
    found |= outputs(chain.send((1, 4, second[4:])), WIDTH)
    close_enough(row_of(found, 0), model.blocks(first))
    close_enough(row_of(found, 1), model.blocks(second))


def test_only_wanted_positions_come_out(model: Model, chain: Chain) -> None:
    got = chain.send((0, 0, model.row(10)), want=None)
    assert [(row.at, row.n) for message in got if isinstance(message, Out) for row in message.rows] == [(9, 1)]
    assert chain.send((0, 10, model.row(3)), want=13) == []
    assert chain.position(1) == 13


def test_every_hop_adds_its_times_to_the_trace(model: Model, table: Table) -> None:
    clock = Clock()
    table.engines[A] = make_engine(model, HEAD, clock=clock)
    chain = Chain(table, [(A, HEAD), (B, TAIL)]).open()
    table.engines[A].receive(CLIENT, chain.step((0, 0, model.row(3))).pack())
    clock.now += 0.25
    table.run()
    assert table.got(Out)[0].trace == ((250.0, 0.0), (0.0, 0.0))


def test_every_hop_says_how_many_tokens_are_there_even_where_one_before_it_does_not(model: Model, table: Table) -> None:
    clock = Clock()
    table.engines[A] = make_engine(model, HEAD, clock=clock)
    chain = Chain(table, [(A, HEAD), (B, TAIL)]).open()
    for at in range(30):  # 4 tokens a second, and each stays 0.75 of one
        table.engines[A].receive(CLIENT, replace(chain.step((0, 4 * at, model.row(4))), trace=((1.0, 1.0),)).pack())
        clock.now += 0.75
        table.run()
        clock.now += 0.25
    assert table.got(Out)[-1].depths == (None, 4, 0), "3 on average, and these have just been counted"
    assert table.engines[A].stats().depth_tokens == 3


def test_a_trace_never_outgrows_a_frame(model: Model, table: Table) -> None:
    chain = one_hop(table)
    step = replace(chain.step((0, 0, model.row(1))), trace=((1.0, 1.0),) * 256)
    (out,) = table.say(B, step)
    assert isinstance(out, Out)
    assert out.trace[-1] == (0.0, 0.0)
    assert len(out.depths) == len(out.trace) == 256


def test_many_sessions_run_in_one_pass(model: Model, table: Table) -> None:
    chains = [one_hop(table, lease=16) for _ in range(12)]
    for n, chain in enumerate(chains):
        table.engines[B].receive(CLIENT, chain.step((0, 0, model.row(3, n))).pack())
    before = table.engines[B].stats().batches
    table.run()
    assert table.engines[B].stats().batches == before + 1
    for n, chain in enumerate(chains):
        out = [m for m in table.got(Out) if m.session == chain.ids[0]]
        close_enough(row_of(outputs(out, WIDTH), 0), model.blocks(model.row(3, n)))


def test_along_a_chain_half_of_the_sessions_go_ahead_of_the_others(model: Model, table: Table) -> None:
    chains = [Chain(table, [(A, HEAD), (B, TAIL)], lease=16).open() for _ in range(6)]
    for n, chain in enumerate(chains):
        table.engines[A].receive(CLIENT, chain.step((0, 0, model.row(1, n))).pack())
    before = table.engines[A].stats()
    table.engines[A].step()
    after = table.engines[A].stats()
    assert (after.batches - before.batches, after.tokens_done - before.tokens_done) == (1, 3)
    table.run()
    assert table.engines[A].stats().batches == before.batches + 2
    outs = {out.session: outputs([out], WIDTH) for out in table.got(Out)}
    for n, chain in enumerate(chains):
        close_enough(row_of(outs[chain.ids[1]], 0), model.blocks(model.row(1, n)))


def test_sessions_over_different_hops_of_one_span_run_side_by_side(model: Model, table: Table) -> None:
    whole, part = one_hop(table), Chain(table, [(A, HEAD), (B, TAIL)]).open()
    table.engines[B].receive(CLIENT, whole.step((0, 0, model.row(5, 1))).pack())
    table.engines[A].receive(CLIENT, part.step((0, 0, model.row(5, 2))).pack())
    table.run()
    by_session = {out.session: outputs([out], WIDTH) for out in table.got(Out)}
    close_enough(row_of(by_session[whole.ids[0]], 0), model.blocks(model.row(5, 1)))
    close_enough(row_of(by_session[part.ids[1]], 0), model.blocks(model.row(5, 2)))


def test_one_peer_can_be_two_hops_of_a_chain(model: Model, table: Table) -> None:
    chain = Chain(table, [(B, Span(0, 1)), (A, Span(1, 2)), (B, TAIL)]).open()
    found = outputs(chain.send((0, 0, model.row(7))), WIDTH)
    close_enough(row_of(found, 0), model.blocks(model.row(7)))


def test_long_steps_go_on_piece_by_piece(model: Model, table: Table) -> None:
    limits = EngineLimits(batch_tokens=8)
    table.engines = {A: make_engine(model, HEAD, limits=limits), B: make_engine(model, ALL)}
    chain = Chain(table, [(A, HEAD), (B, TAIL)]).open()
    found = outputs(chain.send((0, 0, model.row(20)), (1, 0, model.row(3, 1))), WIDTH)
    close_enough(row_of(found, 0), model.blocks(model.row(20)))
    close_enough(row_of(found, 1), model.blocks(model.row(3, 1)))
    pieces = [[(row.row, row.at, row.n) for row in m.rows] for a, b, m in table.carried if b == B]
    assert pieces == [[(0, 0, 8)], [(0, 8, 8)], [(0, 16, 4), (1, 0, 3)]]


def test_frames_are_cut_to_their_size(model: Model, table: Table) -> None:
    table.engines[B] = make_engine(model, ALL, limits=EngineLimits(frame_bytes=3 * WIDTH * 4))
    got = one_hop(table).send((0, 0, model.row(8)), (1, 0, model.row(2, 1)))
    assert [[(r.row, r.at, r.n) for r in m.rows] for m in got if isinstance(m, Out)] == [
        [(0, 0, 3)],
        [(0, 3, 3)],
        [(0, 6, 2), (1, 0, 1)],
        [(1, 1, 1)],
    ]
    close_enough(row_of(outputs(got, WIDTH), 0), model.blocks(model.row(8)))


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_a_session_speaks_the_codec_it_was_opened_with(model: Model, table: Table, codec: str) -> None:
    chain = Chain(table, [(A, HEAD), (B, TAIL)], codec=codec).open()
    got = chain.send((0, 0, model.row(6)))
    assert {m.codec for _, _, m in table.carried if isinstance(m, Step | Out)} == {codec}
    relative = (row_of(outputs(got, WIDTH), 0) - model.blocks(model.row(6))).norm() / model.blocks(model.row(6)).norm()
    assert relative < 0.1


def test_a_decoding_session_does_not_wait_for_a_long_prompt(model: Model, table: Table) -> None:
    limits = EngineLimits(batch_tokens=8, prompt_tokens=4, decode_tokens=1)
    engine = table.engines[B] = make_engine(model, ALL, limits=limits)
    long, short = one_hop(table, lease=128), one_hop(table, lease=16)
    engine.receive(CLIENT, long.step((0, 0, model.row(100))).pack())
    engine.step()
    engine.receive(CLIENT, short.step((0, 0, model.row(1))).pack())
    engine.step()
    assert short.ids[0] in {parse(frame).session for _, frame in engine.outgoing()}


def test_long_prompts_take_turns(model: Model, table: Table) -> None:
    engine = table.engines[B] = make_engine(model, ALL, limits=EngineLimits(batch_tokens=8, decode_tokens=1))
    chains = [one_hop(table, lease=64) for _ in range(3)]
    for chain in chains:
        engine.receive(CLIENT, chain.step((0, 0, model.row(40))).pack())
    served = []
    while engine.step():
        served += [parse(frame).session for _, frame in engine.outgoing()]
    assert served == [chain.ids[0] for chain in chains] * 5


def test_who_generates_is_served_between_the_pieces_of_a_micro_batch(model: Model, table: Table) -> None:
    desk = TrainingDesk(
        lambda: Trainee.load(model.checkpoint, ALL, dtype=torch.float32, device=torch.device("cpu")),
        model=model.checkpoint.digest,
        blocks=ALL,
        limits=TrainingLimits(share=0.9),
        clock=Clock(tick=TRAINING_TURN / 4),
    )
    engine = table.engines[B] = make_engine(model, ALL, training=desk)
    chain, trainer, tokens = one_hop(table), new_session_id(), 40
    engine.receive(STRANGER, Train(trainer, model.checkpoint.digest, ALL, "fp32").pack())
    forward = Forward(trainer, MicroBatch(1, (tokens,)), True, "fp32", encode(model.row(tokens), "fp32"))
    engine.receive(STRANGER, forward.pack())
    said: list[type[Message]] = []
    for at in range(60):
        engine.receive(CLIENT, chain.step((0, at, model.row(1))).pack())
        engine.step()
        sent = [(peer, parse(frame)) for peer, frame in engine.outgoing()]
        assert [type(message) for peer, message in sent if peer == CLIENT] == [Out]
        said += [type(message) for peer, message in sent if peer == STRANGER]
        if Passed in said:
            break
    assert said == [Ready, Passed]
    assert at > 3


def test_rows_longer_than_the_model_are_refused_in_words(model: Model, table: Table) -> None:
    table.engines[B] = make_engine(model, ALL, kv_tokens=2048)
    chain = one_hop(table, lease=16)
    (fault,) = chain.send((0, 0, model.row(model.checkpoint.max_positions + 1)))
    assert isinstance(fault, Fault)
    assert fault.code is FaultCode.REFUSED
    assert "1024 positions" in fault.message
    assert chain.position(0) is None


# --- steps are idempotent ---------------------------------------------------------------------------------------------


def test_duplicates_do_nothing_and_overlaps_add_what_is_new(model: Model, chain: Chain) -> None:
    hidden = model.row(12)
    found = outputs(chain.send((0, 0, hidden[:6])), WIDTH)
    assert chain.send((0, 0, hidden[:6])) == []
    assert chain.send((0, 2, hidden[2:5])) == []
    again = outputs(chain.send((0, 3, hidden[3:])), WIDTH)
    assert sorted(at for _, at in again) == list(range(6, 12))
    close_enough(row_of(found | again, 0), model.blocks(hidden))


def test_a_step_with_known_and_new_rows_adds_the_new(model: Model, chain: Chain) -> None:
    chain.send((0, 0, model.row(6)))
    found = outputs(chain.send((1, 0, model.row(4, 1)), (0, 0, model.row(6)), (2, 0, model.row(5, 2))), WIDTH)
    assert {row for row, _ in found} == {1, 2}
    close_enough(row_of(found, 1), model.blocks(model.row(4, 1)))
    close_enough(row_of(found, 2), model.blocks(model.row(5, 2)))


@pytest.mark.parametrize("row", [0, 7])
def test_a_step_beyond_what_is_known_is_a_gap_of_its_sender(model: Model, chain: Chain, row: int) -> None:
    chain.send((0, 0, model.row(5)))
    assert faults(chain.send((row, 6, model.row(2)))) == [(FaultCode.GAP, CLIENT)]
    step = chain.step((row, 6, model.row(2)), index=1)
    assert faults(chain.table.say(B, step, sender=A)) == [(FaultCode.GAP, A)]
    assert chain.position(0) == chain.position(1) == 5


def test_a_step_with_one_gap_is_not_applied_at_all(model: Model, chain: Chain) -> None:
    assert faults(chain.send((0, 0, model.row(5)), (1, 3, model.row(2)))) == [(FaultCode.GAP, CLIENT)]
    assert chain.position(0) is None


# --- rows: fork and drop ----------------------------------------------------------------------------------------------


def fork(chain: Chain, *entries: tuple[int, int, int], drop: Sequence[int] = (), onward: bool = True) -> Fork:
    forks = tuple(ForkEntry(RowId(src), at, RowId(dst)) for src, at, dst in entries)
    return Fork(chain.ids[0], forks, tuple(RowId(row) for row in drop), onward)


@pytest.mark.parametrize("at", [1, 8, 11, 16, 20])
@pytest.mark.parametrize("drop", [(), (0,)])
def test_a_fork_continues_its_source_from_any_position(
    model: Model, chain: Chain, at: int, drop: tuple[int, ...]
) -> None:
    hidden, other = model.row(20), model.row(9, 5)
    chain.send((0, 0, hidden))
    assert chain.table.say(A, fork(chain, (0, at, 1), drop=drop)) == []
    found = outputs(chain.send((1, at, other)), WIDTH)
    expected = model.blocks(torch.cat([hidden[:at], other]))
    close_enough(torch.stack([found[1, at + n] for n in range(9)]), expected[at:])
    assert chain.position(0) == chain.position(1) == (None if drop else 20)


def test_beams_are_forked_and_dropped_in_one_frame(model: Model, chain: Chain) -> None:
    rows = [model.row(11, seed) for seed in range(3)]
    chain.send(*((n, 0, row) for n, row in enumerate(rows)))
    chain.table.say(A, fork(chain, (1, 11, 10), (1, 11, 11), (2, 11, 12), drop=(0, 1, 2)))
    step = model.row(1, 9)
    found = outputs(chain.send((10, 11, step), (11, 11, step), (12, 11, step)), WIDTH)
    for row, source in ((10, 1), (11, 1), (12, 2)):
        close_enough(found[row, 11], model.blocks(torch.cat([rows[source], step]))[-1])
    assert chain.position(1, 0) is None


def test_forks_are_safe_to_repeat(model: Model, chain: Chain) -> None:
    chain.send((0, 0, model.row(9)))
    again = fork(chain, (0, 5, 1), drop=(0,))
    assert chain.table.say(A, again, again, fork(chain, (0, 5, 1), drop=(0,), onward=False)) == []
    assert chain.position(0, 1) == chain.position(1, 1) == 5
    assert chain.position(0, 0) is None


def test_a_fork_of_what_is_not_here_is_a_gap_and_drops_nothing(model: Model, chain: Chain) -> None:
    chain.send((0, 0, model.row(9)))
    for bad in (fork(chain, (0, 10, 1), drop=(0,)), fork(chain, (5, 0, 6), drop=(0,))):
        assert faults(chain.table.say(A, bad)) == [(FaultCode.GAP, CLIENT)]
    assert chain.position(0) == chain.position(1) == 9


def test_a_fork_stays_at_home_when_it_is_not_to_go_onward(model: Model, chain: Chain) -> None:
    chain.send((0, 0, model.row(9)))
    chain.table.say(A, fork(chain, (0, 5, 1), onward=False))
    assert (chain.position(0, 1), chain.position(1, 1)) == (5, None)


def test_a_fork_keeps_its_place_behind_a_long_step(model: Model, table: Table) -> None:
    limits = EngineLimits(batch_tokens=4)
    table.engines[A] = make_engine(model, HEAD, limits=limits)
    chain = Chain(table, [(A, HEAD), (B, TAIL)]).open()
    engine = table.engines[A]
    for message in (chain.step((0, 0, model.row(20))), fork(chain, (0, 20, 1), drop=(0,))):
        engine.receive(CLIENT, message.pack())
    found = outputs(chain.send((1, 20, model.row(1, 3))), WIDTH)
    close_enough(found[1, 20], model.blocks(torch.cat([model.row(20), model.row(1, 3)]))[-1])


def test_forks_that_use_rows_in_turn_are_hostile_but_harmless(model: Model, chain: Chain) -> None:
    chain.send((0, 0, model.row(9)))
    chain.table.say(A, fork(chain, (0, 5, 1), (77, 3, 0), drop=(0,)))
    assert chain.position(0, 1) == 5
    chain.table.say(A, fork(chain, (1, 4, 2), (2, 3, 1), (2, 3, 4), drop=(1, 2)))
    assert [chain.position(0, row) for row in (1, 2, 4)] == [None, None, 3]


# --- recovery: relink, outbox, sent -----------------------------------------------------------------------------------


def test_a_replaced_last_hop_is_fed_from_the_outbox(model: Model, table: Table, chain: Chain) -> None:
    hidden = model.row(15)
    chain.send((0, 0, hidden[:12]))
    del table.engines[B]
    spare = Chain(table, [(A, HEAD), (C, TAIL)], ids=[chain.ids[0], new_session_id()])
    table.say(C, spare.opening(1))
    relink = Relink(chain.ids[0], None, True, Contact(C), (Resend(RowId(0), 0, 11),), spare.ids[1])
    got = table.say(A, relink)
    assert [(r.at, r.n) for m in got if isinstance(m, Out) for r in m.rows] == [(11, 1)]
    close_enough(outputs(got, WIDTH)[0, 11], model.blocks(hidden[:12])[-1])
    found = outputs(spare.send((0, 12, hidden[12:])), WIDTH)
    close_enough(found[0, 14], model.blocks(hidden)[-1])


def test_a_replaced_middle_hop_stores_but_does_not_repeat_what_the_next_one_has(model: Model, table: Table) -> None:
    hidden = model.row(15)
    chain = Chain(table, [(A, Span(0, 1)), (B, Span(1, 3)), (C, Span(3, 4))]).open()
    chain.send((0, 0, hidden[:10]))
    table.carried.clear()
    del table.engines[B]
    spare = PeerId("spare")
    table.engines[spare] = make_engine(model, ALL)
    new = Chain(table, [(A, Span(0, 1)), (spare, Span(1, 3)), (C, Span(3, 4))])
    new.ids = [chain.ids[0], new_session_id(), chain.ids[2]]
    table.say(spare, new.opening(1, sent={RowId(0): 10}))
    table.say(C, Relink(chain.ids[2], prev=spare))
    resend = (Resend(RowId(0), 0, 9),)
    assert table.say(A, Relink(chain.ids[0], None, True, Contact(spare), resend, new.ids[1])) == []
    assert [new.position(index) for index in range(3)] == [10, 10, 10]
    assert not [m for _, target, m in table.carried if target == C]
    found = outputs(new.send((0, 10, hidden[10:])), WIDTH)
    close_enough(found[0, 14], model.blocks(hidden)[-1])
    # What it stored without sending it, it can send when the next hop dies too.
    del table.engines[C]
    table.engines[B] = make_engine(model, ALL)
    last = Chain(table, [*new.hops[:2], (B, Span(3, 4))], ids=[*new.ids[:2], new_session_id()])
    table.say(B, last.opening(2))
    got = table.say(spare, Relink(new.ids[1], None, True, Contact(B), (Resend(RowId(0), 0, 14),), last.ids[2]))
    close_enough(outputs(got, WIDTH)[0, 14], model.blocks(hidden)[-1])


def test_a_resend_can_ask_the_last_hop_for_lost_outputs(model: Model, chain: Chain) -> None:
    first = outputs(chain.send((0, 0, model.row(10))), WIDTH)
    got = chain.table.say(B, Relink(chain.ids[1], resend=(Resend(RowId(0), 2, 7),)))
    again = outputs(got, WIDTH)
    assert sorted(again) == [(0, 7), (0, 8), (0, 9)]
    assert all(torch.equal(again[key], first[key]) for key in again)


def test_big_resends_go_in_several_frames_and_nothing_overtakes_them(model: Model, table: Table) -> None:
    table.engines[A] = make_engine(model, HEAD, limits=EngineLimits(frame_bytes=4 * WIDTH * 4))
    chain = Chain(table, [(A, HEAD), (B, TAIL)]).open()
    chain.send((0, 0, model.row(10)), (1, 0, model.row(3, 1)))
    chain.ids[1] = new_session_id()
    table.say(C, chain.opening(1))
    table.carried.clear()
    resend = (Resend(RowId(0), 1, 0), Resend(RowId(5), 0, 0), Resend(RowId(1), 0, 0))
    table.say(C, chain.step((0, 0, model.row(1)), index=1))  # so that token 1 is next there
    relink = Relink(chain.ids[0], None, True, Contact(C), resend, chain.ids[1])
    table.say(A, relink, chain.step((0, 10, model.row(1, 9))))
    pieces = [[(r.row, r.at, r.n) for r in m.rows] for a, b, m in table.carried if b == C]
    assert pieces == [[(0, 1, 4)], [(0, 5, 4)], [(0, 9, 1), (1, 0, 3)], [(0, 10, 1)]]


def test_a_relink_to_the_end_makes_a_hop_the_last(model: Model, table: Table) -> None:
    chain = Chain(table, [(B, ALL), (C, ALL)]).open()
    chain.send((0, 0, model.row(5)), want=5)
    got = table.say(B, Relink(chain.ids[0], None, True, None, (Resend(RowId(0), 0, 4),)))
    assert list(outputs(got, WIDTH)) == [(0, 4)]


def test_a_dropped_outbox_is_said_and_the_session_goes_on(model: Model, table: Table) -> None:
    table.engines[A] = make_engine(model, HEAD, outbox_tokens=16)
    chain = Chain(table, [(A, HEAD), (B, TAIL)]).open()
    hidden = model.row(30)
    found = outputs(chain.send((0, 0, hidden[:20])), WIDTH)
    relink = Relink(chain.ids[0], None, True, Contact(B), (Resend(RowId(0), 0, 0),), chain.ids[1])
    assert faults(table.say(A, relink)) == [(FaultCode.NO_OUTBOX, None)]
    assert faults(table.say(A, replace(relink, resend=(Resend(RowId(0), 20, 0),)))) == []
    found |= outputs(chain.send((0, 20, hidden[20:])), WIDTH)
    close_enough(row_of(found, 0), model.blocks(hidden))
    assert table.engines[A].stats().outboxes_dropped == 1


def test_a_star_carries_the_frames_of_both_sides_over_the_client(model: Model, table: Table) -> None:
    chain = Chain(table, [(A, HEAD), (B, TAIL)])
    table.say(A, chain.opening(0, next=Contact(CLIENT)))
    table.say(B, chain.opening(1, prev=CLIENT))
    (step,) = chain.send((0, 0, model.row(6)))
    assert isinstance(step, Step)
    assert step.session == chain.ids[0]
    got = table.say(B, replace(step, session=chain.ids[1]))
    close_enough(row_of(outputs(got, WIDTH), 0), model.blocks(model.row(6)))


def test_what_a_client_can_make_a_hop_remember_is_bounded(model: Model, table: Table) -> None:
    chain = one_hop(table)
    relinks = [
        Relink(chain.ids[0], resend=tuple(Resend(RowId(4096 * part + n), 5, 0) for n in range(4096)))
        for part in range(3)
    ]
    assert faults(table.say(B, *relinks)) == [(FaultCode.REFUSED, None)]


# --- who may say what -------------------------------------------------------------------------------------------------


def test_strangers_are_ignored(model: Model, chain: Chain) -> None:
    chain.send((0, 0, model.row(4)))
    frames = [
        chain.step((0, 4, model.row(1))),
        fork(chain, (0, 2, 1)),
        Relink(chain.ids[0], prev=STRANGER),
        Ping(chain.ids[0], 1),
        Close(chain.ids[0]),
        chain.opening(0),
    ]
    assert chain.table.say(A, *frames, sender=STRANGER) == []
    assert chain.table.engines[A].stats().ignored == len(frames)
    assert (chain.position(0), chain.position(0, 1)) == (4, None)


def test_the_previous_hop_has_a_say_in_rows_alone(model: Model, chain: Chain) -> None:
    chain.send((0, 0, model.row(4)))
    frames = [Relink(chain.ids[1], prev=STRANGER), Ping(chain.ids[1], 1), Close(chain.ids[1]), chain.opening(1)]
    assert chain.table.say(B, *frames, sender=A) == []
    assert chain.position(1) == 4


def test_a_relink_changes_on_arrival_whose_steps_are_taken(model: Model, table: Table) -> None:
    limits = EngineLimits(batch_tokens=2)
    table.engines[B] = make_engine(model, ALL, limits=limits)
    chain = one_hop(table, prev=A)
    engine = table.engines[B]
    engine.receive(A, chain.step((0, 0, model.row(8))).pack())  # keeps the session busy
    engine.receive(CLIENT, Relink(chain.ids[0], prev=C).pack())
    engine.receive(C, chain.step((0, 8, model.row(1))).pack())
    engine.receive(A, chain.step((0, 9, model.row(1))).pack())
    table.run()
    assert chain.position(0) == 9
    assert engine.stats().ignored == 1


@pytest.mark.parametrize("kind", [Out, Ready, Pong, Busy])
def test_what_is_not_for_hops_is_ignored(model: Model, chain: Chain, kind: type) -> None:
    session = chain.ids[0]
    frame = {
        Out: Out(session, (StepRow(RowId(0), 0, 1, 0),), "fp32", encode(model.row(1), "fp32")),
        Ready: Ready(session),
        Pong: Pong(session, 1, {}),
        Busy: Busy(session, 1.0, ""),
    }[kind]
    assert chain.table.say(A, frame) == []
    assert chain.table.say(A, replace(frame, session=new_session_id())) == []
    assert chain.table.engines[A].stats().ignored == 2


def test_frames_for_unknown_sessions_are_answered_to_their_sender(model: Model, table: Table) -> None:
    unknown = new_session_id()
    rows = (StepRow(RowId(0), 0, 1, 0),)
    for message in (Step(unknown, rows, "fp32", b""), Ping(unknown, 1), Fork(unknown), Relink(unknown)):
        table.engines[A].receive(STRANGER, message.pack())
    answers = table.engines[A].outgoing()
    assert [peer for peer, _ in answers] == [STRANGER] * 4
    assert faults([parse(frame) for _, frame in answers]) == [(FaultCode.UNKNOWN_SESSION, None)] * 4
    assert table.say(A, Close(unknown)) == []


def test_the_client_hears_when_the_next_hop_has_lost_the_session(model: Model, table: Table, chain: Chain) -> None:
    table.engines[B] = make_engine(model, ALL)  # restarted
    assert faults(chain.send((0, 0, model.row(3)))) == [(FaultCode.UNKNOWN_SESSION, B)]


def test_hops_cannot_say_anything_else_to_the_client_in_our_name(model: Model, chain: Chain) -> None:
    lie = Fault(chain.ids[1], FaultCode.REFUSED, "go away")
    assert chain.table.say(A, lie, sender=B) == []
    assert chain.table.say(A, replace(lie, code=FaultCode.UNKNOWN_SESSION), sender=STRANGER) == []
    assert chain.table.engines[A].stats().ignored == 2


# --- nonsense ---------------------------------------------------------------------------------------------------------


def test_garbage_of_the_previous_hop_is_reported_to_the_client(chain: Chain) -> None:
    chain.table.engines[B].receive(A, b"\x05\x00\x00\x00garbage")
    chain.table.run()
    assert faults(chain.table.got(Fault)) == [(FaultCode.BAD_INPUT, A)]
    chain.table.engines[B].receive(STRANGER, b"")
    chain.table.engines[B].receive(CLIENT, b"")
    assert chain.table.engines[B].stats().malformed == 3
    assert chain.table.engines[B].outgoing() == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
def test_hidden_states_that_are_not_finite_are_refused(model: Model, table: Table, value: float, codec: str) -> None:
    chain = Chain(table, [(A, HEAD), (B, TAIL)], codec=codec).open()
    hidden = model.row(3)
    hidden[1, 7] = value
    step = chain.step((0, 0, hidden), index=1)
    assert faults(table.say(B, step, sender=A)) == [(FaultCode.BAD_INPUT, A)]
    assert chain.position(1) is None


@pytest.mark.parametrize("size", [0, WIDTH * 4, WIDTH * 4 * 2 - 1, WIDTH * 4 * 2 + 1, WIDTH * 4 * 3])
def test_a_body_of_the_wrong_size_is_refused(model: Model, chain: Chain, size: int) -> None:
    step = replace(chain.step((0, 0, model.row(2)), index=1), body=bytes(size))
    assert faults(chain.table.say(B, step, sender=A)) == [(FaultCode.BAD_INPUT, A)]
    assert chain.position(1) is None


def test_a_step_that_announces_far_more_than_it_brings_costs_nothing(chain: Chain) -> None:
    rows = tuple(StepRow(RowId(n), 0, (1 << 24) - 1, 0) for n in range(4096))
    assert faults(chain.table.say(A, Step(chain.ids[0], rows, "int8", b""))) == [(FaultCode.BAD_INPUT, CLIENT)]


def test_a_failing_pass_frees_the_session_it_fails_for_and_no_other(model: Model, table: Table) -> None:
    span = failing_span(model)
    engine = table.engines[B] = make_engine(model, ALL, span=span)
    good, bad = one_hop(table, lease=32), one_hop(table, lease=32)
    span.fail_at = 7
    for chain, tokens in ((good, 5), (bad, 7)):
        engine.receive(CLIENT, chain.step((0, 0, model.row(tokens))).pack())
    table.run()
    (fault,) = table.got(Fault)
    assert (fault.session, fault.code) == (bad.ids[0], FaultCode.EXECUTOR)
    assert "on fire" in fault.message
    close_enough(row_of(outputs(table.got(Out), WIDTH), 0), model.blocks(model.row(5)))
    assert faults(bad.send((0, 0, model.row(1)))) == [(FaultCode.UNKNOWN_SESSION, None)]
    good.close()
    assert span.pool.free == span.pool.pages


def test_nan_made_here_is_a_fault_of_this_executor(model: Model, table: Table) -> None:
    span = failing_span(model)
    engine = table.engines[B] = make_engine(model, ALL, span=span)
    good, bad = one_hop(table, lease=32), one_hop(table, lease=32)
    span.nan_at = 7
    for chain, tokens in ((good, 5), (bad, 7)):
        engine.receive(CLIENT, chain.step((0, 0, model.row(tokens))).pack())
    table.run()
    assert [(f.session, f.code) for f in table.got(Fault)] == [(bad.ids[0], FaultCode.EXECUTOR)]
    assert {out.session for out in table.got(Out)} == {good.ids[0]}


# --- opening, leases, room --------------------------------------------------------------------------------------------


def test_opening_again_answers_ready_and_changes_the_lease(model: Model, table: Table) -> None:
    chain = one_hop(table, lease=64)
    free = table.engines[B].stats().kv_tokens_free
    assert table.say(B, chain.opening(0)) == [Ready(chain.ids[0])]
    chain.send((0, 0, model.row(20)))
    assert table.say(B, chain.opening(0, lease=8)) == [Ready(chain.ids[0])]
    assert table.engines[B].stats().kv_tokens_free == free + 64 - 24  # what is used stays promised
    table.say(B, fork(chain, drop=(0,)))
    assert table.engines[B].stats().kv_tokens_free == free + 64 - 8
    assert table.say(B, chain.opening(0, lease=128)) == [Ready(chain.ids[0])]
    assert table.engines[B].stats().kv_tokens_free == free - 64
    assert faults(table.say(B, chain.opening(0, hop=HEAD))) == [(FaultCode.REFUSED, None)]
    assert faults(table.say(B, chain.opening(0, lease=1 << 20))) == [(FaultCode.REFUSED, None)]
    one_hop(table, lease=table.engines[B].stats().kv_tokens_free)
    assert isinstance(table.say(B, chain.opening(0, lease=256))[0], Busy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": Digest("0" * 64)}, "serves model"),
        ({"hop": Span(1, 3)}, "holds blocks 0:2"),
        ({"hop": Span(0, 9)}, "holds blocks 0:2"),
        ({"lease": 1 << 30}, "1024 at most"),
    ],
)
def test_an_open_that_can_never_be_served_is_refused_in_words(
    table: Table, changes: dict[str, object], words: str
) -> None:
    chain = Chain(table, [(A, HEAD)])
    (fault,) = table.say(A, chain.opening(0, **changes))
    assert isinstance(fault, Fault)
    assert fault.code is FaultCode.REFUSED
    assert words in fault.message
    assert table.engines[A].stats().sessions == 0


def test_leases_are_kept_free_for_those_who_have_them(model: Model, table: Table) -> None:
    first = one_hop(table, lease=512)
    second = one_hop(table, lease=512)
    late = Chain(table, [(B, ALL)], lease=8)
    (busy,) = table.say(B, late.opening(0))
    assert isinstance(busy, Busy)
    assert busy.retry_after > 0
    assert len(outputs(first.send((0, 0, model.row(512))), WIDTH)) == 512
    (busy,) = first.send((0, 512, model.row(1)))
    assert isinstance(busy, Busy)
    assert first.position(0) == 512
    second.close()
    assert len(outputs(first.send((0, 512, model.row(1))), WIDTH)) == 1
    assert table.say(B, late.opening(0)) == [Ready(late.ids[0])]


def test_what_went_beyond_a_lease_is_given_back_with_the_rows(model: Model, table: Table) -> None:
    chain = one_hop(table, lease=16)
    assert table.engines[B].stats().kv_tokens_free == 1024 - 16
    chain.send((0, 0, model.row(40)))
    assert table.engines[B].stats().kv_tokens_free == 1024 - 40
    table.say(B, fork(chain, drop=(0,)))
    assert table.engines[B].stats().kv_tokens_free == 1024 - 16


def test_a_row_can_be_cut_back_and_beams_moved_when_all_pages_are_taken(model: Model, table: Table) -> None:
    table.engines[B] = make_engine(model, ALL, kv_tokens=16)
    chain = one_hop(table, lease=16)
    chain.send((0, 0, model.row(16)))
    assert table.say(B, fork(chain, (0, 11, 1), drop=(0,))) == []
    found = outputs(chain.send((1, 11, model.row(5, 1))), WIDTH)
    close_enough(found[1, 15], model.blocks(torch.cat([model.row(16)[:11], model.row(5, 1)]))[-1])


def test_a_fork_without_room_is_busy_and_changes_nothing(model: Model, table: Table) -> None:
    table.engines[B] = make_engine(model, ALL, kv_tokens=16)
    chain = one_hop(table, lease=16)
    chain.send((0, 0, model.row(13)))
    (busy,) = table.say(B, fork(chain, (0, 13, 1), (0, 12, 2), drop=(0,)))
    assert isinstance(busy, Busy)
    assert (chain.position(0, 0), chain.position(0, 1)) == (13, None)


def test_sessions_and_rows_are_counted(model: Model, table: Table) -> None:
    limits = EngineLimits(max_sessions=3, max_sessions_per_owner=2, max_rows_per_session=4)
    engine = table.engines[B] = make_engine(model, ALL, limits=limits)
    first, second = one_hop(table), one_hop(table)
    third = Chain(table, [(B, ALL)])
    assert isinstance(table.say(B, third.opening(0))[0], Busy)
    for n in range(2):
        engine.receive(PeerId(f"other {n}"), replace(third.opening(0), session=new_session_id()).pack())
    table.run()
    assert engine.stats().sessions == 3
    four = [(n, 0, model.row(1)) for n in range(4)]
    assert len(outputs(first.send(*four), WIDTH)) == 4
    assert faults(first.send((4, 0, model.row(1)))) == [(FaultCode.REFUSED, None)]
    assert faults(second.send(*four, (4, 0, model.row(1)))) == [(FaultCode.REFUSED, None)]
    assert faults(table.say(B, fork(first, (0, 1, 5)))) == [(FaultCode.REFUSED, None)]
    assert table.say(B, fork(first, (0, 1, 5), drop=(1,))) == []


@pytest.mark.parametrize(
    "limits",
    [EngineLimits(inbox_frames=2), EngineLimits(inbox_bytes=1500), EngineLimits(total_inbox_bytes=1500)],
    ids=["frames", "bytes", "bytes of all"],
)
def test_a_full_inbox_takes_no_more_and_says_so(model: Model, table: Table, limits: EngineLimits) -> None:
    engine = table.engines[B] = make_engine(model, ALL, limits=limits)
    chain = one_hop(table)
    for at in range(4):
        engine.receive(CLIENT, chain.step((0, at * 2, model.row(2))).pack())
    table.run()
    assert len(table.got(Busy)) == 2
    assert chain.position(0) == 4
    assert len(outputs(chain.send((0, 4, model.row(2))), WIDTH)) == 2
    assert engine.stats().queue_bytes == 0


def test_a_ping_is_answered_at_once_with_positions_as_they_stand(model: Model, table: Table) -> None:
    chain = one_hop(table)
    chain.send((0, 0, model.row(3)))
    engine = table.engines[B]
    engine.receive(CLIENT, chain.step((0, 3, model.row(5)), (1, 0, model.row(2))).pack())
    engine.receive(CLIENT, Ping(chain.ids[0], 42).pack())
    ((_, frame),) = engine.outgoing()
    assert frame == Pong(chain.ids[0], 42, {RowId(0): 3}, queue=7).pack()


# --- the end of sessions ----------------------------------------------------------------------------------------------


def test_close_and_the_end_of_a_client_free_everything_at_once(model: Model, table: Table) -> None:
    engine = table.engines[B]
    before = engine.stats()
    chains = [one_hop(table) for _ in range(4)]
    for chain in chains:
        chain.send((0, 0, model.row(20)))
        engine.receive(CLIENT, chain.step((0, 20, model.row(3))).pack())
    other = Open(new_session_id(), model.checkpoint.digest, ALL, "fp32", STRANGER, None, 8)
    engine.receive(STRANGER, other.pack())
    engine.receive(CLIENT, Close(chains[0].ids[0]).pack())
    assert engine.stats().sessions == 4
    engine.gone(CLIENT)
    assert engine.stats().sessions == 1
    engine.gone(STRANGER)
    engine.gone(STRANGER)
    after = engine.stats()
    assert (after.kv_tokens_free, after.outbox_tokens_free) == (before.kv_tokens_free, before.outbox_tokens_free)
    assert (after.sessions, after.rows, after.queue_tokens, after.queue_bytes) == (0, 0, 0, 0)
    assert not engine.step()


def test_idle_sessions_are_freed_and_their_owners_told(model: Model, table: Table) -> None:
    clock = Clock()
    engine = table.engines[B] = make_engine(model, ALL, clock=clock, limits=EngineLimits(idle_seconds=10))
    idle, active = one_hop(table), one_hop(table)
    clock.now = 8.0
    active.position(0)
    clock.now = 11.0
    engine.expire()
    table.run()
    assert [(f.session, f.code) for f in table.got(Fault)] == [(idle.ids[0], FaultCode.UNKNOWN_SESSION)]
    assert engine.stats().sessions == 1
    assert engine.stats().kv_tokens_free == 1024 - 64


def test_a_session_that_waits_for_its_turn_is_not_idle(model: Model, table: Table) -> None:
    clock = Clock()
    engine = table.engines[B] = make_engine(model, ALL, clock=clock, limits=EngineLimits(idle_seconds=10))
    chain = one_hop(table)
    engine.receive(CLIENT, chain.step((0, 0, model.row(3))).pack())
    clock.now = 99.0
    engine.expire()
    table.run()
    assert len(table.got(Out)) == 1


def test_a_closed_session_can_be_opened_again(model: Model, table: Table) -> None:
    chain = one_hop(table)
    chain.send((0, 0, model.row(20)))
    assert table.say(B, Close(chain.ids[0]), chain.opening(0)) == [Ready(chain.ids[0])]
    close_enough(row_of(outputs(chain.send((0, 0, model.row(4, 1))), WIDTH), 0), model.blocks(model.row(4, 1)))
