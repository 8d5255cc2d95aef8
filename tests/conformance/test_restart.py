"""The gateway is killed and started again: its clients' retries succeed, and peers forget what it held."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from httpx2 import TransportError
from openai import APIConnectionError, OpenAI

from clients.local_swarm import LocalSwarm
from clients.status import read_swarm
from tests.conformance.conftest import KEY, KV_TOKENS, MODEL, QUESTION, SPANS, Door, Local
from tests.conformance.waiting import wait_for

NEW = 12
GREEDY = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": NEW, "temperature": 0}
RETRIES = 12  # with up to 8 s between them
READ_SECONDS = 20.0


def free_tokens(swarm: LocalSwarm, since: float) -> list[int]:
    """Of each peer that has announced later than `since` (Unix time)."""
    records = asyncio.run(read_swarm(swarm.addresses, READ_SECONDS))
    return [record.cache_left for record in records if record.issued > since]


def test_killed_gateway_leaves_nothing_at_peers_and_retries_of_its_clients_succeed(
    gateway: Door, swarm: LocalSwarm, local: Local
) -> None:
    with OpenAI(base_url=gateway.base_url, api_key=KEY, max_retries=RETRIES) as client, ThreadPoolExecutor(1) as pool:
        stream = iter(client.chat.completions.create(**GREEDY | {"max_tokens": 4000}, stream=True))
        next(stream)
        gateway.kill()
        killed = time.time()
        with pytest.raises((APIConnectionError, TransportError)):
            list(stream)
        with pytest.raises(APIConnectionError):
            client.with_options(max_retries=0).chat.completions.create(**GREEDY)
        wait_for(lambda: free_tokens(swarm, killed) == [KV_TOKENS] * len(SPANS))
        again = pool.submit(lambda: client.chat.completions.create(**GREEDY))
        gateway.start_again()
        assert again.result(90).choices[0].message.content == local.answer(QUESTION, new=NEW)
