"""Each error is the exception that users of OpenAI's client expect."""

import openai
import pytest

from clients.gateway.keys import parse_keys
from clients.gateway.served import Served
from tests.clients.gateway.live import LiveGateway
from tests.clients.gateway.played import PlayedCompleter

KEY = "sk-0123456789abcdef0123456789abcdef"


def test_a_wrong_key_is_an_authentication_error(played: Served) -> None:
    with LiveGateway([played], keys=parse_keys([KEY])) as live:
        openai.OpenAI(base_url=live.base_url, api_key=KEY).models.list()
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=live.base_url, api_key="sk-other").models.list()


def test_one_too_many_is_a_rate_limit_error(played: Served) -> None:
    with LiveGateway([played], keys=parse_keys([f"{KEY} requests=1"])) as live:
        client = openai.OpenAI(base_url=live.base_url, api_key=KEY, max_retries=0)
        client.completions.create(model="tiny", prompt="a")
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model="tiny", prompt="a")
        assert int(refused.value.response.headers["retry-after"]) >= 1


@pytest.mark.anyio
async def test_what_is_nobodys_is_not_found(standing: LiveGateway) -> None:
    async with openai.AsyncOpenAI(base_url=standing.base_url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            await client.files.list()


@pytest.mark.anyio
async def test_a_fault_of_ours_is_an_internal_error_without_its_words(
    live: LiveGateway, completer: PlayedCompleter
) -> None:
    completer.refusal = ValueError("a secret of ours")
    async with openai.AsyncOpenAI(base_url=live.base_url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as failed:
            await client.completions.create(model="tiny", prompt="a")
    assert failed.value.status_code == 500
    assert "secret" not in failed.value.message
