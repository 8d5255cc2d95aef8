"""Sessions whose rows begin alike: what one has computed the others take over, and everything else is as ever."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from peers.engine import Engine
from peers.limits import EngineLimits
from swarm.ids import PeerId, RowId, Span, new_session_id
from swarm.messages import Close, Fork, ForkEntry, Out, Relink, Resend
from tests.peers.ring import CLIENT, Chain, Model, Table, make_engine, outputs, row_of

A, B, C = PeerId("A"), PeerId("B"), PeerId("C")
HEAD, TAIL, ALL = Span(0, 2), Span(2, 4), Span(0, 4)
WIDTH, PAGE = 64, 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


@pytest.fixture
def table(model: Model) -> Table:
    return Table(model, {A: make_engine(model, HEAD), B: make_engine(model, TAIL), C: make_engine(model, TAIL)})


def open_chain(table: Table, *, share: bool = True, codec: str = "fp32", lease: int = 128) -> Chain:
    return Chain(table, [(A, HEAD), (B, TAIL)], share=share, codec=codec, lease=lease).open()


def computed(table: Table) -> tuple[int, int]:
    """Tokens by A and by B so far."""
    return table.engines[A].stats().tokens_done, table.engines[B].stats().tokens_done


def check(model: Model, found: Sequence[object], hidden: Tensor, row: int = 0) -> None:
    got = row_of(outputs(found, WIDTH), row)  # type: ignore[arg-type]
    torch.testing.assert_close(got, model.blocks(hidden), rtol=1e-4, atol=1e-4)


def unpaged(engine: Engine) -> int:
    stats = engine.stats()
    return stats.kv_tokens - stats.kv_tokens_free


def test_an_equal_prompt_is_computed_once_by_every_hop(model: Model, table: Table) -> None:
    prompt = model.row(45)
    check(model, open_chain(table).send((0, 0, prompt)), prompt)
    assert computed(table) == (45, 45)
    second = open_chain(table)
    check(model, second.send((0, 0, prompt)), prompt)
    assert computed(table) == (50, 50), "all but the page that is not full"
    assert table.engines[B].stats().tokens_shared == 40
    check(model, second.send((0, 45, model.row(9, 1)), want=0) + table.got(Out), torch.cat([prompt, model.row(9, 1)]))


def test_a_prompt_of_full_pages_needs_no_computing_at_all(model: Model, table: Table) -> None:
    prompt = model.row(4 * PAGE)
    open_chain(table).send((0, 0, prompt))
    before = computed(table)
    (out,) = open_chain(table).send((0, 0, prompt), want=None)
    assert isinstance(out, Out)
    torch.testing.assert_close(outputs([out], WIDTH)[0, 31], model.blocks(prompt)[-1], rtol=1e-4, atol=1e-4)
    assert computed(table) == before


def test_only_the_common_beginning_is_shared(model: Model, table: Table) -> None:
    common = model.row(20)
    first, second = torch.cat([common, model.row(20, 1)]), torch.cat([common, model.row(25, 2)])
    open_chain(table).send((0, 0, first))
    check(model, open_chain(table).send((0, 0, second)), second)
    assert computed(table) == (40 + 45 - 16,) * 2


def test_what_was_generated_is_a_beginning_too(model: Model, table: Table) -> None:
    """The next turn of a chat brings the last answer as a part of its prompt."""
    prompt, answer = model.row(20), model.row(15, 1)
    chain = open_chain(table)
    chain.send((0, 0, prompt))
    for at, state in enumerate(answer, 20):
        chain.send((0, at, state[None]))
    chain.close()
    whole = torch.cat([prompt, answer, model.row(10, 2)])
    check(model, open_chain(table).send((0, 0, whole)), whole)
    assert computed(table) == (35 + 45 - 32,) * 2


def test_pages_outlive_their_session_and_count_as_free(model: Model, table: Table) -> None:
    prompt = model.row(40)
    chain = open_chain(table)
    chain.send((0, 0, prompt))
    chain.close()
    for engine in table.engines.values():
        assert unpaged(engine) == 0
        assert engine.stats().outbox_tokens_free == 1024
    again = open_chain(table)
    check(model, again.send((0, 0, prompt)), prompt)
    again.close()
    assert computed(table) == (40, 40)


def test_remembered_pages_never_stand_in_the_way_of_a_lease(model: Model) -> None:
    table = Table(model, {A: make_engine(model, HEAD, kv_tokens=128, outbox_tokens=64), B: make_engine(model, TAIL)})
    for seed in range(6):  # more than there is room for
        chain = open_chain(table, lease=128)
        prompt = model.row(100, seed)
        check(model, chain.send((0, 0, prompt)), prompt)
        chain.close()
    assert table.engines[A].stats().busy == 0
    assert unpaged(table.engines[A]) == 0


def test_pages_that_were_taken_over_are_promised_to_who_has_them(model: Model, table: Table) -> None:
    prompt = model.row(4 * PAGE)
    first, second = open_chain(table, lease=0), open_chain(table, lease=0)
    first.send((0, 0, prompt))
    second.send((0, 0, prompt))
    assert unpaged(table.engines[A]) == 2 * len(prompt), "either may stay longer"
    first.close()
    assert unpaged(table.engines[A]) == len(prompt)


def test_who_does_not_share_neither_takes_nor_gives(model: Model, table: Table) -> None:
    prompt = model.row(40)
    for share in (False, True, False):
        check(model, open_chain(table, share=share).send((0, 0, prompt)), prompt)
    assert computed(table) == (120, 120)
    assert table.engines[A].stats().tokens_shared == 0


def test_sessions_with_other_codecs_share_nothing(model: Model, table: Table) -> None:
    prompt = model.row(40)
    open_chain(table, codec="fp16").send((0, 0, prompt))
    check(model, open_chain(table).send((0, 0, prompt)), prompt)
    assert computed(table) == (80, 80)


def test_frames_that_cut_pages_do_not_hinder_sharing(model: Model, table: Table) -> None:
    """What comes in pieces is computed up to the end of a page, and found from there on."""
    prompt = model.row(60)
    open_chain(table).send((0, 0, prompt))
    chain = open_chain(table)
    found = chain.send((0, 0, prompt[:13])) + chain.send((0, 13, prompt[13:]))
    check(model, found, prompt)
    assert computed(table) == (60 + 8 + 4,) * 2, "5 tokens up to a cut, 3 to the end of that page, 4 beyond the last"


def test_all_rows_of_a_step_are_looked_up(model: Model, table: Table) -> None:
    first, second = model.row(30, 1), model.row(30, 2)
    open_chain(table).send((0, 0, first), (1, 0, second))
    found = open_chain(table).send((5, 0, second), (6, 0, model.row(7)), (7, 0, first))
    check(model, found, second, 5)
    check(model, found, model.row(7), 6)
    check(model, found, first, 7)
    assert computed(table) == (60 + 6 + 7 + 6,) * 2


def test_sessions_that_come_at_once_share_what_the_first_has_done_so_far(model: Model) -> None:
    limits = EngineLimits(batch_tokens=16, prompt_tokens=16)
    table = Table(model, {A: make_engine(model, HEAD, limits=limits), B: make_engine(model, TAIL)})
    prompt, chains = model.row(96), [open_chain(table) for _ in range(3)]
    for chain in chains:
        table.engines[A].receive(CLIENT, chain.step((0, 0, prompt)).pack())
    table.run()
    for chain in chains:
        check(model, [out for _, out in table.to_client if out.session == chain.ids[1]], prompt)
    assert computed(table)[0] < 2 * 96


def test_a_fork_and_a_cut_leave_what_others_share_as_it_is(model: Model, table: Table) -> None:
    prompt = model.row(32)
    first, second = open_chain(table), open_chain(table)
    first.send((0, 0, prompt))
    second.send((0, 0, prompt))
    fork = Fork(second.ids[0], (ForkEntry(RowId(0), 20, RowId(1)),), (RowId(0),))
    table.say(A, fork)
    other = model.row(20, 3)
    found = second.send((1, 20, other), want=20)
    expected = model.blocks(torch.cat([prompt[:20], other]))
    got = outputs(found, WIDTH)
    for at in range(20, 40):
        torch.testing.assert_close(got[1, at], expected[at], rtol=1e-4, atol=1e-4)
    check(model, open_chain(table).send((0, 0, prompt)), prompt)
    more = torch.cat([prompt, model.row(5, 4)])
    got = outputs(first.send((0, 32, model.row(5, 4))), WIDTH)
    torch.testing.assert_close(got[0, 36], model.blocks(more)[-1], rtol=1e-4, atol=1e-4)


def test_what_was_cut_off_is_not_taken_for_what_came_after(model: Model, table: Table) -> None:
    """Guesses that were wrong fill a page, are cut, and other tokens fill it."""
    prompt, wrong, right = model.row(10), model.row(6, 1), model.row(6, 2)
    chain = open_chain(table)
    chain.send((0, 0, torch.cat([prompt, wrong])))
    table.say(A, Fork(chain.ids[0], (ForkEntry(RowId(0), 10, RowId(1)),), (RowId(0),)))
    chain.send((1, 10, right))
    for tail in (wrong, right):
        row = torch.cat([prompt, tail])
        check(model, open_chain(table).send((0, 0, row)), row)


def test_shared_rows_are_sent_again_like_all_others(model: Model, table: Table) -> None:
    """B dies: A sends C what the second session has never computed."""
    prompt = model.row(45)
    open_chain(table).send((0, 0, prompt))
    second = open_chain(table)
    second.send((0, 0, prompt))
    del table.engines[B]
    fresh = Chain(table, [(A, HEAD), (C, TAIL)], share=True, ids=[second.ids[0], new_session_id()])
    table.say(C, fresh.opening(1))
    relink = Relink(fresh.ids[0], None, True, fresh.opening(0).next, (Resend(RowId(0), 0, 0),), fresh.ids[1])
    check(model, table.say(A, relink), prompt)
    assert table.engines[A].stats().tokens_done == 50


def test_outputs_come_from_what_is_remembered_when_the_outbox_is_given_up(model: Model) -> None:
    """No room for the outbox of both sessions: the rows go on, and recovery would go one hop further up."""
    prompt, other = model.row(40), model.row(40, 1)
    table = Table(model, {A: make_engine(model, HEAD, outbox_tokens=48), B: make_engine(model, TAIL)})
    for row in (prompt, other, prompt, other):
        check(model, open_chain(table).send((0, 0, row)), row)


def test_a_hop_that_is_told_what_the_next_has_already_does_not_send_it(model: Model, table: Table) -> None:
    prompt = model.row(40)
    open_chain(table).send((0, 0, prompt))
    chain = Chain(table, [(A, HEAD), (B, TAIL)], share=True)
    table.say(B, chain.opening(1))
    table.say(B, chain.step((0, 0, model.row(24, 9)), index=1), sender=A)
    table.say(A, replace(chain.opening(0), sent={RowId(0): 24}))
    carried = len(table.carried)
    chain.send((0, 0, prompt))
    steps = [message for _, target, message in table.carried[carried:] if target == B]
    assert [(row.at, row.n) for step in steps for row in step.rows] == [(24, 16)]  # type: ignore[union-attr]


def test_a_session_that_ends_in_a_shared_step_leaves_nothing(model: Model, table: Table) -> None:
    prompt = model.row(40)
    open_chain(table).send((0, 0, prompt))
    before = unpaged(table.engines[A])
    chain = open_chain(table)
    table.engines[A].receive(CLIENT, chain.step((0, 0, prompt)).pack())
    table.engines[A].receive(CLIENT, Close(chain.ids[0]).pack())
    table.run()
    assert unpaged(table.engines[A]) == before
