"""Sessions that wait at one engine: who is served, and when."""

import pytest
from torch import Tensor

from peers.engine import Engine
from peers.limits import EngineLimits
from swarm.ids import PeerId, Span
from swarm.messages import Out
from tests.peers.ring import CLIENT, Chain, Model, Table, make_engine

HOP, ALL = PeerId("hop"), Span(0, 4)
LIMITS = EngineLimits(batch_tokens=16, prompt_tokens=4, decode_tokens=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


class Crowd:
    """Sessions on one engine; `turn` is one batch."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.engine: Engine = make_engine(model, ALL, limits=LIMITS, kv_tokens=4096)
        self.table = Table(model, {HOP: self.engine})
        self.at: dict[Chain, int] = {}

    def join(self) -> Chain:
        chain = Chain(self.table, [(HOP, ALL)], lease=0).open()
        self.at[chain] = 0
        return chain

    def ask(self, chain: Chain, hidden: Tensor) -> None:
        self.engine.receive(CLIENT, chain.step((0, self.at[chain], hidden), want=None).pack())
        self.at[chain] += len(hidden)

    def turn(self) -> set[Chain]:
        """Who got the answer to what it asked."""
        self.engine.step()
        for peer, frame in self.engine.outgoing():
            self.table.give(HOP, peer, frame)
        ended = {out.session for out in self.table.got(Out)}
        self.table.to_client.clear()
        return {chain for chain in self.at if chain.ids[0] in ended}


def test_a_prompt_gets_on_while_many_decode_all_the_time(model: Model) -> None:
    crowd = Crowd(model)
    decoding = [crowd.join() for _ in range(20)]  # more than a batch holds
    prompt = crowd.join()
    for chain in decoding:
        crowd.ask(chain, model.row(1))
    crowd.ask(prompt, model.row(40))
    for _ in range(9):
        done = crowd.turn()
        assert prompt not in done
        for chain in done:
            crowd.ask(chain, model.row(1))
    assert prompt in crowd.turn(), "4 tokens of it in each batch"


def test_who_decodes_is_answered_by_the_next_batch_while_prompts_keep_coming(model: Model) -> None:
    crowd = Crowd(model)
    prompts, decoding = [crowd.join() for _ in range(5)], [crowd.join() for _ in range(12)]
    for chain in prompts:
        crowd.ask(chain, model.row(60))
    for _ in range(30):
        for chain in decoding:
            crowd.ask(chain, model.row(1))
        done = crowd.turn()
        assert done >= set(decoding), "12 and 4 of prompts are a batch"
        for chain in done - set(decoding):
            crowd.ask(chain, model.row(60, 1))
