"""Adapters that a peer hosts: used by their digest, never put aside, never asked for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from peers.executor_settings import ExecutorReady, ExecutorSettings
from peers.hosted import HostedAdapter
from peers.limits import EngineLimits
from peers.loading import load
from peers.training.deltas import BlockAdapter
from swarm.errors import ModelError
from swarm.ids import Span
from swarm.messages import Close, Fault, FaultCode, Ready
from swarm.peft_folder import read_folder
from swarm.training import PackedAdapter, adapter_digest
from tests.clients.training.adapted import adapted
from tests.peers.ring import Chain, Model, Table, make_engine, outputs, row_of
from tests.peers.test_uploads import PEER, chain_on, keys, lora, packed, send

BLOCKS = {0: lora(1), 2: lora(2)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


def hosted(blocks: Mapping[int, PackedAdapter]) -> HostedAdapter:
    named = tuple((block, each.key) for block, each in blocks.items())
    tensors = {each.key: BlockAdapter.read(each.tuned, each.body) for each in blocks.values()}
    return HostedAdapter("style", adapter_digest(named), named, tensors)


STYLE = hosted(BLOCKS)


def table_of(model: Model, **limits: int) -> Table:
    return Table(model, {PEER: make_engine(model, Span(0, 4), limits=EngineLimits(**limits), hosted=[STYLE])})


def test_what_is_hosted_computes_what_an_upload_does(model: Model) -> None:
    table, hidden, width = table_of(model), model.row(5), model.checkpoint.hidden_size
    by_name, sent = chain_on(table), chain_on(Table(model, {PEER: make_engine(model, Span(0, 4))}))
    assert table.say(PEER, by_name.opening(0, hosted=STYLE.digest)) == [Ready(by_name.ids[0])]
    named = tuple((block, each.key) for block, each in BLOCKS.items())
    frames = [each.addressed(sent.ids[0]) for each in BLOCKS.values()]
    opening = sent.opening(0, adapters=named)
    assert sent.table.say(PEER, opening, *frames, opening)[-1] == Ready(sent.ids[0])
    plain = chain_on(table).open()
    found = [row_of(outputs(chain.send((1, 0, hidden)), width), 1) for chain in (by_name, sent, plain)]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_who_has_the_same_adapter_need_not_send_it(model: Model) -> None:
    table = table_of(model)
    chain = chain_on(table)
    assert table.say(PEER, chain.opening(0, adapters=keys(BLOCKS[2], 2))) == [Ready(chain.ids[0])]


def test_it_stays_whatever_clients_send(model: Model) -> None:
    table = table_of(model, adapter_bytes=len(BLOCKS[0].body), total_adapter_bytes=len(BLOCKS[0].body))
    for seed in range(5, 9):
        chain = chain_on(table)
        assert send(table, chain, lora(seed)) == Ready(chain.ids[0])
        table.say(PEER, Close(chain.ids[0]))
    chain = chain_on(table)
    assert table.say(PEER, chain.opening(0, hosted=STYLE.digest)) == [Ready(chain.ids[0])]


def test_another_digest_is_refused(model: Model) -> None:
    table = table_of(model)
    chain = chain_on(table)
    (answer,) = table.say(PEER, chain.opening(0, hosted="5eed" * 8))
    assert isinstance(answer, Fault)
    assert answer.code is FaultCode.REFUSED
    assert "does not host the adapter 5eed" in answer.message


def test_a_session_keeps_what_it_has(model: Model) -> None:
    table = table_of(model)
    chain = chain_on(table)
    opening = chain.opening(0, hosted=STYLE.digest)
    assert table.say(PEER, opening, replace(opening, lease=200)) == [Ready(chain.ids[0])] * 2
    (answer,) = table.say(PEER, replace(opening, hosted=None))
    assert isinstance(answer, Fault)
    assert "a session keeps its adapters" in answer.message


def test_a_hop_takes_what_is_of_its_blocks(model: Model) -> None:
    table = table_of(model)
    chain = Chain(table, [(PEER, Span(0, 2)), (PEER, Span(2, 4))])
    whole = chain_on(table)
    width, hidden = model.checkpoint.hidden_size, model.row(4)
    for each in (whole, chain):
        for index in range(len(each.hops)):
            table.say(PEER, each.opening(index, hosted=STYLE.digest))
    found = [row_of(outputs(each.send((1, 0, hidden)), width), 1) for each in (whole, chain)]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_not_hosted(model: Model) -> None:
    odd = packed({"A": torch.ones(2, 8), "B": torch.ones(64, 2)})
    with pytest.raises(ModelError, match=r"the adapter 'style' can't be hosted here: .* don't fit 64 x 64"):
        make_engine(model, Span(0, 4), hosted=[hosted({1: odd})])


def test_executor_is_told_of_folders_and_tells_of_digests(model: Model, tmp_path: Path) -> None:
    local = AutoModelForCausalLM.from_pretrained(model.checkpoint.folder, dtype=torch.float32)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted(local, config).save_pretrained(tmp_path / "style")
    settings = ExecutorSettings(
        model=str(model.checkpoint.folder),
        blocks=Span(1, 3),
        cache=str(tmp_path / "cache"),
        kv_tokens=64,
        adapters=(("style", str(tmp_path / "style")),),
    )
    loaded = load(ExecutorSettings.from_json(settings.to_json()))
    ready = ExecutorReady.from_json(loaded.ready(1, settings).to_json())
    assert ready.adapters == (("style", read_folder(tmp_path / "style", model.checkpoint).digest),)
    assert [block for block, _ in loaded.hosted[0].keys] == [1, 2]
