"""A peer's desk for fine-tuning: what it answers, what it keeps, whom it turns away."""

import gc
import secrets
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from peers.training.desk import LAYERS_SECONDS, TrainingDesk
from peers.training.limits import TrainingLimits
from peers.training.trainee import Trainee
from swarm.checkpoint import Checkpoint, resolve
from swarm.codecs import body_size, decode, encode
from swarm.errors import ModelError
from swarm.ids import Digest, PeerId, SessionId, Span
from swarm.messages import Busy, Close, Fault, FaultCode, Message, Ping, Pong, Ready, parse
from swarm.training import (
    Adapter,
    Backward,
    Collect,
    Forward,
    Gradients,
    MicroBatch,
    Missing,
    Passed,
    TensorSpec,
    Train,
    Tuned,
    adapter_key,
)
from tests.models import tiny_model
from tests.peers.ring import Clock

ME, OTHER = PeerId("me"), PeerId("other")
LENGTHS = (5, 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("desk")
    return resolve(str(tiny_model("llama", folder)), cache=folder)


class Desk:
    """A desk that serves blocks 1:4 of a tiny model, spoken to in frames."""

    def __init__(self, checkpoint: Checkpoint, **limits: float) -> None:
        self.blocks = Span(1, 4)
        self.model = checkpoint.digest
        self.width = checkpoint.hidden_size
        self.clock = Clock()
        self.loaded: list[Trainee] = []

        def load() -> Trainee:
            trainee = Trainee.load(checkpoint, self.blocks, dtype=torch.float32, device=torch.device("cpu"))
            self.loaded.append(trainee)
            return trainee

        self.desk = TrainingDesk(
            load,
            model=checkpoint.digest,
            blocks=self.blocks,
            limits=TrainingLimits(**limits),  # type: ignore[arg-type]
            clock=self.clock,
        )

    def tell(self, message: Message, sender: PeerId = ME) -> list[Message]:
        """All that is answered, once everything that waits is done."""
        self.desk.receive(sender, parse(message.pack()))
        while self.desk.waits:
            self.desk.step(1.0, others=False)
        return [parse(frame) for _, frame in self.desk.outgoing()]

    def open(self, hop: Span = Span(1, 3), sender: PeerId = ME, model: Digest | None = None) -> SessionId:  # noqa: B008
        session = SessionId(secrets.token_bytes(16))
        self.answer = self.tell(Train(session, model or self.model, hop, "fp32"), sender)[0]
        return session

    def hidden(self) -> Tensor:
        return torch.randn(sum(LENGTHS), self.width, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def desk(checkpoint: Checkpoint) -> Desk:
    return Desk(checkpoint)


def forward(session: SessionId, hidden: Tensor, *, id: int = 1, keep: bool = True) -> Forward:  # noqa: A002
    return Forward(session, MicroBatch(id, LENGTHS), keep, "fp32", encode(hidden, "fp32"))


def backward(session: SessionId, *parts: Tensor, id: int = 1) -> Backward:  # noqa: A002
    body = b"".join(encode(part, "fp32") for part in parts)
    return Backward(session, MicroBatch(id, LENGTHS), len(parts) == 2, "fp32", body)


def test_what_is_kept_and_what_is_computed_again_give_the_same(desk: Desk) -> None:
    hidden, session = desk.hidden(), desk.open()
    assert isinstance(desk.tell(forward(session, hidden))[0], Passed)
    assert desk.desk.kept_bytes > 0
    (kept,) = desk.tell(backward(session, torch.ones_like(hidden)))
    assert desk.desk.kept_bytes == 0
    (again,) = desk.tell(backward(session, hidden, torch.ones_like(hidden)))
    assert isinstance(kept, Gradients)
    assert isinstance(again, Gradients)
    assert torch.equal(decode(kept.body, "fp32", desk.width), decode(again.body, "fp32", desk.width))


def test_what_was_let_go_is_asked_for(checkpoint: Checkpoint) -> None:
    desk = Desk(checkpoint, kept_bytes=1)
    session = desk.open()
    desk.tell(forward(session, desk.hidden()))
    assert desk.desk.kept_bytes == 0
    (answer,) = desk.tell(backward(session, torch.ones(sum(LENGTHS), desk.width)))
    assert answer == Missing(session, 1)


def test_an_adapter_that_is_not_here_is_asked_for(desk: Desk) -> None:
    session, key = desk.open(), secrets.token_bytes(32)
    frame = Forward(session, MicroBatch(1, LENGTHS, ((1, key),)), True, "fp32", encode(desk.hidden(), "fp32"))
    assert desk.tell(frame) == [Missing(session, 1, (key,))]


def low_rank(desk: Desk, path: str = "self_attn.q_proj", rank: int = 2, width: int | None = None) -> Adapter:
    specs = (TensorSpec("A", "fp32", (rank, width or desk.width)), TensorSpec("B", "fp32", (64, rank)))
    tuned = (Tuned(path, "lora", 1.0, 0.0, specs),)
    body = torch.ones(sum(spec.nbytes for spec in specs) // 4).numpy().tobytes()
    return Adapter(SessionId(bytes(16)), adapter_key(tuned, body), tuned, body)


def use(desk: Desk, session: SessionId, adapter: Adapter) -> list[Message]:
    """What comes of a micro-batch with the adapter in block 1."""
    told = desk.tell(Adapter(session, adapter.key, adapter.tuned, adapter.body))
    batch = MicroBatch(1, LENGTHS, ((1, adapter.key),))
    return told + desk.tell(Forward(session, batch, True, "fp32", encode(desk.hidden(), "fp32")))


def test_gradients_of_an_adapter_come_in_its_order_and_size(desk: Desk) -> None:
    session, adapter = desk.open(), low_rank(desk)
    assert isinstance(use(desk, session, adapter)[0], Passed)
    batch = MicroBatch(1, LENGTHS, ((1, adapter.key),))
    ones = encode(torch.ones(sum(LENGTHS), desk.width), "fp32")
    inputs, block = desk.tell(Backward(session, batch, False, "fp32", ones))
    assert isinstance(inputs, Gradients)
    assert isinstance(block, Gradients)
    assert (inputs.block, inputs.more, block.block, block.more) == (None, True, 1, False)
    assert len(block.body) == len(adapter.body)


def pass_back(desk: Desk, session: SessionId, adapter: Adapter, into: int | None = None) -> list[Message]:
    use(desk, session, adapter)
    batch = MicroBatch(1, LENGTHS, ((1, adapter.key),))
    ones = encode(torch.ones(sum(LENGTHS), desk.width), "fp32")
    return desk.tell(Backward(session, batch, False, "fp32", ones, into=into))


def test_gradients_of_adapters_are_added_up_until_they_are_asked_for(desk: Desk) -> None:
    session, adapter = desk.open(), low_rank(desk)
    alone = pass_back(desk, session, adapter)[1]
    for _ in range(3):
        (inputs,) = pass_back(desk, session, adapter, into=7)
        assert isinstance(inputs, Gradients)
        assert (inputs.block, inputs.more) == (None, False)
    (total,) = desk.tell(Collect(session, 7, 3))
    assert isinstance(alone, Gradients)
    assert isinstance(total, Gradients)
    assert (total.id, total.block, total.more) == (7, 1, False)
    once, thrice = (torch.frombuffer(bytearray(each.body), dtype=torch.float32) for each in (alone, total))
    torch.testing.assert_close(thrice, 3 * once)
    assert desk.tell(Collect(session, 7, 3)) == [Missing(session, 7)]


def test_a_sum_that_lacks_a_micro_batch_is_not_handed_out(desk: Desk) -> None:
    session, adapter = desk.open(), low_rank(desk)
    pass_back(desk, session, adapter, into=7)
    assert desk.tell(Collect(session, 7, 2)) == [Missing(session, 7)]


def test_sums_beyond_the_budget_are_dropped_the_oldest_first(checkpoint: Checkpoint) -> None:
    adapter = low_rank(Desk(checkpoint))
    desk = Desk(checkpoint, adapter_bytes=2 * len(adapter.body))
    session = desk.open()
    for into in range(20):
        pass_back(desk, session, adapter, into=into)
    found = [desk.tell(Collect(session, into, 1))[0] for into in range(20)]
    assert [isinstance(answer, Gradients) for answer in found] == [False] * 18 + [True] * 2


def test_gradients_of_different_adapters_are_not_added_up(desk: Desk) -> None:
    session = desk.open()
    pass_back(desk, session, low_rank(desk), into=7)
    (fault,) = pass_back(desk, session, low_rank(desk, rank=3), into=7)
    assert isinstance(fault, Fault)
    assert fault.code is FaultCode.BAD_INPUT


@pytest.mark.parametrize("codec", ["grad8", "grad4"])
def test_gradients_come_in_the_codec_that_was_asked_for(codec: str, desk: Desk) -> None:
    session, adapter = desk.open(), low_rank(desk)
    use(desk, session, adapter)
    batch = MicroBatch(1, LENGTHS, ((1, adapter.key),))
    ones = encode(torch.ones(sum(LENGTHS), desk.width), codec)
    (inputs,) = desk.tell(Backward(session, batch, False, codec, ones, answer=codec, into=7))
    assert isinstance(inputs, Gradients)
    assert (inputs.codec, len(inputs.body)) == (codec, body_size(codec, sum(LENGTHS), desk.width))
    (total,) = desk.tell(Collect(session, 7, 1, codec))
    assert isinstance(total, Gradients)
    sizes = [spec.nbytes // 4 for tuned in adapter.tuned for spec in tuned.tensors]
    assert len(total.body) == sum(body_size(codec, 1, size) for size in sizes)


def test_the_gradient_of_inputs_is_left_out_where_nobody_wants_it(desk: Desk) -> None:
    session, adapter = desk.open(), low_rank(desk)
    batch = MicroBatch(1, LENGTHS, ((1, adapter.key),))
    ones = encode(torch.ones(sum(LENGTHS), desk.width), "fp32")
    answers = []
    for wanted in (True, False):
        use(desk, session, adapter)
        answers.append(desk.tell(Backward(session, batch, False, "fp32", ones, wanted)))
    (inputs, block), (nothing, same) = answers
    assert isinstance(inputs, Gradients)
    assert isinstance(nothing, Gradients)
    assert (len(inputs.body), len(nothing.body)) == (len(ones), 0)
    assert isinstance(block, Gradients)
    assert isinstance(same, Gradients)
    assert block.body == same.body


def test_a_way_back_that_changes_nothing_is_answered_with_nothing(desk: Desk) -> None:
    session = desk.open()
    desk.tell(forward(session, desk.hidden()))
    ask = backward(session, torch.ones(sum(LENGTHS), desk.width))
    (nothing,) = desk.tell(replace(ask, wanted=False))
    assert isinstance(nothing, Gradients)
    assert (len(nothing.body), nothing.more, desk.desk.kept_bytes) == (0, False, 0)


@pytest.mark.parametrize(
    ("path", "width", "words"),
    [("self_attn.z_proj", None, "no linear layer"), ("", None, "no linear"), ("self_attn.q_proj", 7, "don't fit")],
)
def test_an_adapter_that_does_not_fit_is_refused(desk: Desk, path: str, width: int | None, words: str) -> None:
    (fault,) = use(desk, desk.open(), low_rank(desk, path, width=width))
    assert isinstance(fault, Fault)
    assert fault.code is FaultCode.REFUSED
    assert words in fault.message


def test_an_adapter_under_a_false_key_is_refused(desk: Desk) -> None:
    adapter = low_rank(desk)
    (fault,) = desk.tell(Adapter(desk.open(), bytes(32), adapter.tuned, adapter.body))
    assert isinstance(fault, Fault)
    assert "digest" in fault.message


def test_an_adapter_beyond_the_budget_is_refused(checkpoint: Checkpoint) -> None:
    desk = Desk(checkpoint, adapter_bytes=100)
    (fault,) = use(desk, desk.open(), low_rank(desk))[:1]
    assert isinstance(fault, Fault)
    assert "lower rank" in fault.message


def test_adapters_of_earlier_steps_make_room_and_those_that_are_still_wanted_do_not(checkpoint: Checkpoint) -> None:
    first, second = (low_rank(Desk(checkpoint), rank=rank) for rank in (2, 3))
    desk = Desk(checkpoint, adapter_bytes=len(second.body))
    session = desk.open()
    assert isinstance(use(desk, session, first)[0], Passed)
    assert desk.tell(replace(second, session=session)) == []
    (fault,) = desk.tell(replace(first, session=session))  # the second has not been used yet
    assert isinstance(fault, Fault)
    assert fault.code is FaultCode.REFUSED
    assert "lower rank, or fewer layers" in fault.message


@pytest.mark.parametrize("body", [b"", b"1234", bytes(4 * 64 * 9)])
def test_hidden_states_of_a_wrong_size_end_the_session(desk: Desk, body: bytes) -> None:
    session = desk.open()
    (fault,) = desk.tell(Forward(session, MicroBatch(1, LENGTHS), True, "fp32", body))
    assert isinstance(fault, Fault)
    assert fault.code is FaultCode.BAD_INPUT
    assert desk.desk.session_count == 0


def test_numbers_that_are_not_finite_end_the_session(desk: Desk) -> None:
    (fault,) = desk.tell(forward(desk.open(), desk.hidden().fill_(float("nan"))))
    assert isinstance(fault, Fault)
    assert "not finite" in fault.message


def test_micro_batches_beyond_the_limit_are_refused(checkpoint: Checkpoint) -> None:
    desk = Desk(checkpoint, max_tokens=4)
    (fault,) = desk.tell(forward(desk.open(), desk.hidden()))
    assert isinstance(fault, Fault)
    assert "takes 4" in fault.message


def test_a_share_of_zero_takes_no_training(checkpoint: Checkpoint) -> None:
    desk = Desk(checkpoint, share=0)
    desk.open()
    assert isinstance(desk.answer, Fault)
    assert "no time" in desk.answer.message


@pytest.mark.parametrize("hop", [Span(0, 2), Span(3, 5)])
def test_blocks_that_are_not_here_are_refused(desk: Desk, hop: Span) -> None:
    desk.open(hop)
    assert isinstance(desk.answer, Fault)


def test_another_model_is_refused(desk: Desk) -> None:
    desk.open(model=Digest("0" * 64))
    assert isinstance(desk.answer, Fault)


def test_a_peer_that_cannot_load_its_layers_says_why(checkpoint: Checkpoint) -> None:
    def fail() -> Trainee:
        raise ModelError("memory is short")

    desk = Desk(checkpoint)
    desk.desk = TrainingDesk(
        fail, model=checkpoint.digest, blocks=desk.blocks, limits=TrainingLimits(), clock=desk.clock
    )
    desk.open()
    assert isinstance(desk.answer, Fault)
    assert "memory is short" in desk.answer.message


def test_sessions_beyond_the_limit_wait(checkpoint: Checkpoint) -> None:
    desk = Desk(checkpoint, max_sessions_per_owner=1)
    desk.open()
    assert isinstance(desk.answer, Ready)
    desk.open()
    assert isinstance(desk.answer, Busy)
    desk.open(sender=OTHER)
    assert isinstance(desk.answer, Ready)


def test_only_its_owner_speaks_in_a_session(desk: Desk) -> None:
    session = desk.open()
    assert desk.tell(forward(session, desk.hidden()), OTHER) == []
    assert desk.tell(Close(session), OTHER) == []
    assert desk.tell(Ping(session, 7)) == [Pong(session, 7, {}, 0)]


@pytest.mark.parametrize("how", ["close", "gone", "idle"])
def test_nothing_is_left_of_a_session_that_ended(desk: Desk, how: str) -> None:
    session = desk.open()
    desk.tell(forward(session, desk.hidden()))
    if how == "close":
        desk.tell(Close(session))
    elif how == "gone":
        desk.desk.gone(ME)
    else:
        desk.clock.now = 1e6
        desk.desk.expire()
    assert desk.desk.session_count == 0
    assert desk.desk.kept_bytes == 0
    assert not desk.desk.waits


def test_layers_are_let_go_when_nobody_trains_and_read_again(desk: Desk) -> None:
    for _ in range(2):
        session = desk.open()
        assert isinstance(desk.tell(forward(session, desk.hidden()))[0], Passed)
        desk.tell(Close(session))
        desk.clock.now += LAYERS_SECONDS
        desk.desk.expire()
    assert len(desk.loaded) == 2


def test_layers_are_not_read_again_for_the_next_who_comes_soon(desk: Desk) -> None:
    for _ in range(3):
        desk.tell(Close(desk.open()))
        desk.clock.now += LAYERS_SECONDS - 1
        desk.desk.expire()
    assert len(desk.loaded) == 1


def test_the_memory_of_layers_is_free_when_nobody_has_trained_for_a_while(desk: Desk) -> None:
    """Without waiting for Python to look for what refers to itself."""
    gc.disable()
    try:
        session = desk.open()
        desk.tell(forward(session, desk.hidden()))
        weights = [weakref.ref(weight) for weight in desk.loaded[0]._model.parameters()]
        desk.loaded.clear()
        desk.tell(Close(session))
        desk.clock.now += LAYERS_SECONDS
        desk.desk.expire()
        assert weights
        assert {weight() for weight in weights} == {None}
    finally:
        gc.enable()


def test_training_takes_its_share_of_the_time_from_others_and_no_more(checkpoint: Checkpoint) -> None:
    desk = Desk(checkpoint, share=0.25)
    session = desk.open()
    for id in (1, 2):  # noqa: A001
        desk.desk.receive(ME, parse(forward(session, desk.hidden(), id=id).pack()))
    desk.clock.tick = 0.001
    began = desk.clock.now
    desk.desk.step(1e9, others=True)
    worked = desk.clock.now - began
    assert desk.desk.rest() == pytest.approx(3 * worked, abs=0.01)


def test_a_micro_batch_is_done_piece_by_piece_and_gives_the_same(desk: Desk) -> None:
    """Forward and backward."""
    hidden, session = desk.hidden(), desk.open()
    ask = (forward(session, hidden), backward(session, torch.ones_like(hidden)))
    whole = [desk.tell(message)[0] for message in ask]
    for message, expected in zip(ask, whole, strict=True):
        desk.desk.receive(ME, parse(message.pack()))
        pieces = 0
        while not (answers := [parse(frame) for _, frame in desk.desk.outgoing()]):
            desk.desk.step(0.0, others=False)
            pieces += 1
        assert pieces > 10
        (answer,) = answers
        assert isinstance(answer, Passed | Gradients)
        assert answer.body == expected.body


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("how", ["close", "gone"])
def test_what_nobody_wants_any_more_ends_where_it_stands(desk: Desk, how: str, backwards: bool) -> None:
    hidden, session = desk.hidden(), desk.open()
    message: Message = forward(session, hidden)
    if backwards:
        desk.tell(message)
        message = backward(session, torch.ones_like(hidden))
    desk.desk.receive(ME, parse(message.pack()))
    for _ in range(5):
        desk.desk.step(0.0, others=False)
        assert desk.desk.waits
    desk.desk.receive(ME, Ping(session, 7))
    assert [parse(frame) for _, frame in desk.desk.outgoing()] == [Pong(session, 7, {}, 0)]
    if how == "close":
        desk.desk.receive(ME, Close(session))
    else:
        desk.desk.gone(ME)
    assert not desk.desk.waits
    assert (desk.desk.session_count, desk.desk.kept_bytes, desk.desk.outgoing()) == (0, 0, [])
    assert not [thread for thread in threading.enumerate() if thread.name == "piecemeal"]
    again = desk.open()
    assert isinstance(desk.tell(forward(again, hidden))[0], Passed)


def test_who_is_silent_while_its_micro_batch_is_computed_is_not_forgotten(desk: Desk) -> None:
    session = desk.open()
    desk.desk.receive(ME, parse(forward(session, desk.hidden()).pack()))
    desk.desk.step(0.0, others=False)
    desk.clock.now = 1e6
    desk.desk.expire()
    desk.desk.step(1e9, others=False)
    assert [type(parse(frame)) for _, frame in desk.desk.outgoing()] == [Passed]


def test_who_sends_more_than_may_wait_is_told_to_ask_again_later(checkpoint: Checkpoint) -> None:
    desk = Desk(checkpoint, waiting_frames=2)
    session = desk.open()
    most = 2 + len(Span(1, 3))  # an adapter of each block beside the micro-batches
    for id in range(most + 1):  # noqa: A001
        assert not desk.desk.outgoing()
        desk.desk.receive(ME, parse(forward(session, desk.hidden(), id=id).pack()))
    (busy,) = (parse(frame) for _, frame in desk.desk.outgoing())
    assert isinstance(busy, Busy)
    assert desk.desk.session_count == 0
