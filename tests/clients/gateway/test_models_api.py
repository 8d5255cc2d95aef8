"""What is served, and what its swarm can do."""

from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest

from clients.gateway.served import Models, Served
from tests.clients.gateway.live import LiveGateway


@pytest.fixture
def client(standing: LiveGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=standing.base_url, api_key="none", max_retries=0) as client:
        yield client


def test_models_are_listed_with_what_their_swarm_can_do(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.created, model.owned_by) == ("tiny", 1_700_000_000, "swarm")
    assert model.to_dict()["swarm"] == {
        "ready": True,
        "reason": None,
        "blocks": 4,
        "blocks_covered": 4,
        "replication": 1,
        "peers": 2,
        "context_length": 1024,
        "precisions": {"fp32": 2},
        "aliases": [],
    }


def test_one_model_is_told_by_name(client: openai.OpenAI) -> None:
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_model_that_is_not_served_is_not_found(client: openai.OpenAI) -> None:
    for name in ("other", "tiny:adapter", "org/other"):
        with pytest.raises(openai.NotFoundError) as refused:
            client.models.retrieve(name)
        assert refused.value.code == "model_not_found"


def test_a_name_is_found_by_alias_and_in_other_cases_where_that_is_one_model(played: Served) -> None:
    twin = replace(played, name="TINY", aliases=("Small",))
    models = Models([played, twin])
    assert models.get("tiny") is played
    assert models.get("small") is twin
    with pytest.raises(Exception, match="not served here"):
        models.get("Tiny")


def test_embeddings_are_refused_in_a_sentence(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no embeddings here"):
        client.embeddings.create(model="tiny", input="a")
