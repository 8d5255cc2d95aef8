"""Adapters that clients send for their sessions: asked for, checked, kept apart, kept within budgets."""

import pytest
import torch
from torch import Tensor

from peers.limits import EngineLimits
from swarm.codecs import raw_bytes
from swarm.ids import PeerId, Span
from swarm.messages import Busy, Close, Fault, FaultCode, Message, Ready
from swarm.training import AdapterKeys, Missing, PackedAdapter, TensorSpec, Tuned, adapter_key
from tests.peers.ring import CLIENT, Chain, Model, Table, make_engine, outputs, row_of

PEER, OTHER = PeerId("peer"), PeerId("other")
LORA_BYTES = 2 * 2 * 64 * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


def packed(tensors: dict[str, Tensor], path: str = "self_attn.q_proj", kind: str = "lora") -> PackedAdapter:
    specs = tuple(TensorSpec(name, "fp32", tuple(tensor.shape)) for name, tensor in tensors.items())
    tuned = (Tuned(path, kind, 1.0, 0.0, specs),)
    body = b"".join(map(raw_bytes, tensors.values()))
    return PackedAdapter(adapter_key(tuned, body), tuned, body)


def lora(seed: int, width: int = 64) -> PackedAdapter:
    generator = torch.Generator().manual_seed(seed)
    return packed({"A": torch.randn(2, width, generator=generator), "B": torch.randn(64, 2, generator=generator)})


def keys(adapter: PackedAdapter, block: int = 0) -> AdapterKeys:
    return ((block, adapter.key),)


def table_of(model: Model, **limits: int) -> Table:
    return Table(model, {PEER: make_engine(model, Span(0, 4), limits=EngineLimits(**limits))})


def chain_on(table: Table) -> Chain:
    return Chain(table, [(PEER, Span(0, 4))])


def send(table: Table, chain: Chain, adapter: PackedAdapter, block: int = 0) -> Message:
    """What comes of an Open that names an adapter, which is sent where it is missing."""
    opening = chain.opening(0, adapters=keys(adapter, block))
    answer = table.say(PEER, opening)[-1]
    if isinstance(answer, Missing):
        return table.say(PEER, adapter.addressed(chain.ids[0]), opening)[0]
    return answer


def test_what_is_missing_is_asked_for_once(model: Model) -> None:
    table, adapter = table_of(model), lora(0)
    chain = chain_on(table)
    opening = chain.opening(0, adapters=((0, adapter.key), (7, bytes(32))))  # block 7 is somebody else's
    assert table.say(PEER, opening) == [Missing(chain.ids[0], 0, (adapter.key,))]
    assert table.say(PEER, adapter.addressed(chain.ids[0]), opening) == [Ready(chain.ids[0])]
    again = chain_on(table)
    assert table.say(PEER, again.opening(0, adapters=keys(adapter))) == [Ready(again.ids[0])]


def test_an_adapter_is_its_clients_alone(model: Model) -> None:
    table, adapter = table_of(model), lora(0)
    assert isinstance(send(table, chain_on(table), adapter), Ready)
    stranger = chain_on(table)
    table.say(PEER, stranger.opening(0, adapters=keys(adapter), prev=OTHER), sender=OTHER)
    sent = [parsed for _, to, parsed in table.carried if to == OTHER]
    assert sent == [Missing(stranger.ids[0], 0, (adapter.key,))]


def test_sessions_with_different_adapters_and_none_go_through_in_one_batch(model: Model) -> None:
    table, hidden, width = table_of(model), model.row(9), model.checkpoint.hidden_size
    engine = table.engines[PEER]

    def chain(seed: int | None) -> Chain:
        chain = chain_on(table)
        assert seed is None or isinstance(send(table, chain, lora(seed)), Ready)
        return chain.open() if seed is None else chain

    seeds = (0, None, 1, 0)
    together = [chain(seed) for seed in seeds]
    alone = [row_of(outputs(each.send((1, 0, hidden)), width), 1) for each in together]
    before = engine.stats().batches
    for each in together:
        table.give(CLIENT, PEER, each.step((2, 0, hidden)).pack())
    table.run()
    assert engine.stats().batches == before + 1
    for each, expected in zip(together, alone, strict=True):
        own = [message for _, message in table.to_client if message.session == each.ids[0]]
        torch.testing.assert_close(row_of(outputs(own, width), 2), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone[1], model.blocks(hidden), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)
    assert not torch.allclose(alone[0], alone[2], atol=1e-2)


def test_beginnings_are_shared_only_with_rows_of_the_same_adapter(model: Model) -> None:
    table, hidden = table_of(model), model.row(16)
    engine = table.engines[PEER]
    for adapter, shared in ((None, 0), (lora(0), 0), (lora(1), 0), (lora(0), 16)):
        chain = Chain(table, [(PEER, Span(0, 4))], share=True)
        before = engine.stats().tokens_shared
        if adapter is None:
            chain.open()
        else:
            send(table, chain, adapter)
        chain.send((1, 0, hidden))
        assert engine.stats().tokens_shared - before == shared


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        (lora(0, width=63), "don't fit"),
        (packed({"A": torch.ones(2, 64), "B": torch.ones(64, 2)}, "self_attn.z_proj"), "no linear layer"),
        (packed({"keys": torch.ones(2, 3, 16), "values": torch.ones(2, 3, 16)}, "", "prefix"), "in front of rows"),
    ],
)
def test_adapter_that_fits_nothing_is_refused_in_a_sentence(model: Model, adapter: PackedAdapter, says: str) -> None:
    table = table_of(model)
    answer = send(table, chain_on(table), adapter)
    assert isinstance(answer, Fault)
    assert answer.code is FaultCode.REFUSED
    assert says in answer.message
    assert table.engines[PEER].stats().sessions == 0


def test_adapter_under_a_wrong_key_is_refused(model: Model) -> None:
    table, adapter = table_of(model), lora(0)
    chain = chain_on(table)
    lying = PackedAdapter(lora(1).key, adapter.tuned, adapter.body)
    table.say(PEER, chain.opening(0, adapters=keys(lying)))
    (answer,) = table.say(PEER, lying.addressed(chain.ids[0]))
    assert isinstance(answer, Fault)
    assert answer.code is FaultCode.BAD_INPUT


def test_adapter_that_nobody_asked_for_is_ignored(model: Model) -> None:
    table, adapter = table_of(model), lora(0)
    chain = chain_on(table)
    assert table.say(PEER, adapter.addressed(chain.ids[0])) == []
    assert isinstance(table.say(PEER, chain.opening(0, adapters=keys(adapter)))[-1], Missing)
    table.say(PEER, Close(chain.ids[0]), adapter.addressed(chain.ids[0]))
    assert isinstance(table.say(PEER, chain_on(table).opening(0, adapters=keys(adapter)))[-1], Missing)


def test_a_client_keeps_so_much_and_what_is_unused_makes_room(model: Model) -> None:
    table = table_of(model, adapter_bytes=2 * LORA_BYTES)
    chains = [chain_on(table) for _ in range(4)]
    for seed in (0, 1):
        assert isinstance(send(table, chains[seed], lora(seed)), Ready)
    refused = send(table, chains[2], lora(2))
    assert isinstance(refused, Fault)
    assert f"{2 * LORA_BYTES} bytes" in refused.message
    chains[0].close()
    assert isinstance(send(table, chains[3], lora(2)), Ready)
    assert isinstance(table.say(PEER, chain_on(table).opening(0, adapters=keys(lora(1))))[-1], Ready)
    assert isinstance(table.say(PEER, chain_on(table).opening(0, adapters=keys(lora(0))))[-1], Missing)


def test_what_other_clients_use_makes_a_peer_busy(model: Model) -> None:
    table = table_of(model, total_adapter_bytes=LORA_BYTES)
    assert isinstance(send(table, chain_on(table), lora(0)), Ready)
    chain, adapter = chain_on(table), lora(1)
    table.say(PEER, chain.opening(0, adapters=keys(adapter)), adapter.addressed(chain.ids[0]), sender=OTHER)
    assert isinstance([parsed for _, to, parsed in table.carried if to == OTHER][-1], Busy)
    table.engines[PEER].gone(CLIENT)
    opening = chain.opening(0, adapters=keys(adapter))
    table.say(PEER, opening, adapter.addressed(chain.ids[0]), opening, sender=OTHER)
    assert isinstance([parsed for _, to, parsed in table.carried if to == OTHER][-1], Ready)


def test_a_session_keeps_its_adapter(model: Model) -> None:
    table = table_of(model)
    chain = chain_on(table)
    assert isinstance(send(table, chain, lora(0)), Ready)
    assert isinstance(table.say(PEER, chain.opening(0, adapters=keys(lora(0)), lease=300))[-1], Ready)
    (answer,) = table.say(PEER, chain.opening(0))
    assert isinstance(answer, Fault)
    assert "keeps its adapters" in answer.message
