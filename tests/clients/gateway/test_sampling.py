"""How tokens are chosen where a request does not say."""

from transformers import GenerationConfig

from clients.completion.request import Sampling
from clients.gateway.fields import Fields
from clients.gateway.sampling import model_sampling, read_sampling

RECOMMENDED = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.8, top_k=20)


def test_a_model_that_recommends_nothing_is_sampled_as_it_is() -> None:
    assert model_sampling(None) == model_sampling(GenerationConfig()) == Sampling()


def test_what_a_model_recommends_goes_for_what_a_request_leaves_open() -> None:
    default = model_sampling(RECOMMENDED)
    assert default == Sampling(temperature=0.7, top_p=0.8, top_k=20)
    assert read_sampling(Fields({}), default, vocabulary=10) == default
    asked = read_sampling(Fields({"temperature": 0, "top_k": -1}), default, vocabulary=10)
    assert (asked.temperature, asked.top_p, asked.top_k) == (0.0, 0.8, 0)


def test_a_top_p_of_nothing_leaves_the_likeliest_token() -> None:
    assert 0 < read_sampling(Fields({"top_p": 0}), Sampling(), vocabulary=10).top_p < 0.001
