"""KV that one owner hoards: all of it while nobody else wants any, and then no more than what it uses, or a share."""

import pytest

from swarm.codecs import encode
from swarm.ids import PeerId, RowId, SessionId, Span, new_session_id
from swarm.messages import Busy, Fault, FaultCode, Message, Open, Out, Ping, Pong, Ready, Step, StepRow, parse
from tests.peers.ring import Clock, Model, make_engine

ALL = Span(0, 4)
TOKENS, PAGE = 256, 8
MALLORY, ALICE = PeerId("mallory"), PeerId("alice")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


class Hop:
    """One engine, and what owners say to it by hand."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.clock = Clock()
        self.engine = make_engine(model, ALL, kv_tokens=TOKENS, page_size=PAGE, clock=self.clock)

    def say(self, owner: PeerId, message: Message) -> list[Message]:
        self.engine.receive(owner, message.pack())
        while self.engine.step():
            pass
        return [parse(frame) for _, frame in self.engine.outgoing()]

    def open(self, owner: PeerId, lease: int) -> tuple[SessionId, list[Message]]:
        session = new_session_id()
        opening = Open(session, self.model.checkpoint.digest, ALL, "fp32", owner, None, lease)
        return session, self.say(owner, opening)

    def use(self, owner: PeerId, session: SessionId, tokens: int, at: int = 0) -> list[Message]:
        body = encode(self.model.row(at + tokens, 1)[at:], "fp32")
        return self.say(owner, Step(session, (StepRow(RowId(1), at, tokens, at),), "fp32", body))


def kinds(messages: list[Message]) -> list[type[Message]]:
    return [type(message) for message in messages]


def test_one_owner_may_have_all_while_nobody_else_wants_any(model: Model) -> None:
    hop = Hop(model)
    assert all(kinds(hop.open(MALLORY, 64)[1]) == [Ready] for _ in range(4))
    assert kinds(hop.open(MALLORY, 8)[1]) == [Busy]


def test_what_is_reserved_and_not_used_goes_to_who_comes(model: Model) -> None:
    hop = Hop(model)
    hoard, _ = hop.open(MALLORY, TOKENS)
    hop.use(MALLORY, hoard, 32)
    session, answer = hop.open(ALICE, 96)
    assert kinds(answer) == [Ready]
    assert kinds(hop.use(ALICE, session, 96)) == [Out]
    assert kinds(hop.use(MALLORY, hoard, 8, at=32)) == [Out], "the hoarder's session goes on within a share"
    assert kinds(hop.use(MALLORY, hoard, 128, at=40)) == [Busy], "and no further while others use theirs"


def test_who_wants_more_than_a_share_takes_nothing_from_others(model: Model) -> None:
    hop = Hop(model)
    hop.open(MALLORY, TOKENS)
    assert kinds(hop.open(ALICE, TOKENS // 2 + PAGE)[1]) == [Busy]
    assert kinds(hop.open(ALICE, TOKENS // 2)[1]) == [Ready]


def test_sessions_that_compute_nothing_make_room_whatever_they_ping(model: Model) -> None:
    hop = Hop(model)
    hoards = [hop.open(MALLORY, 64)[0] for _ in range(4)]
    for hoard in hoards:
        hop.use(MALLORY, hoard, 64)
    assert kinds(hop.open(ALICE, 64)[1]) == [Busy], "all of it is used, and was just now"
    hop.clock.now += 5
    for hoard in hoards:
        assert kinds(hop.say(MALLORY, Ping(hoard, 1))) == [Pong]
    hop.clock.now += 6
    session, answers = hop.open(ALICE, 64)
    assert kinds(answers) == [Fault, Ready]
    fault = answers[0]
    assert isinstance(fault, Fault)
    assert (fault.session, fault.code) == (hoards[0], FaultCode.UNKNOWN_SESSION)
    assert kinds(hop.use(ALICE, session, 64)) == [Out]


def test_however_many_names_come_who_keeps_within_a_share_gives_nothing_up(model: Model) -> None:
    hop = Hop(model)
    quiet, _ = hop.open(ALICE, TOKENS // 8)
    hop.clock.now += 100
    answers = [kinds(hop.open(PeerId(f"name{n}"), TOKENS // 8)[1]) for n in range(20)]
    assert answers == [[Ready]] * 7 + [[Busy]] * 13
    assert kinds(hop.use(ALICE, quiet, TOKENS // 8)) == [Out]
