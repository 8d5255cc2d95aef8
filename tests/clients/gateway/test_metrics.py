"""What Prometheus is told."""

from collections.abc import Iterator

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from clients.completion.request import Request as Completion
from clients.events import ChainChanged, PeerLost, Step
from clients.gateway.admission import Ticket
from clients.gateway.answering import answering
from clients.gateway.gateway import gateway_of
from clients.gateway.served import Served
from swarm.errors import NetworkError
from swarm.ids import PeerId
from tests.clients.gateway.live import LiveGateway
from tests.clients.gateway.played import PlayedCompleter

TINY = (("model_name", "tiny"),)


async def ask(request: Request, ticket: Ticket) -> Response:
    served = gateway_of(request).models.get("tiny")
    async for _ in ticket.submit(served, Completion(prompt=(5, 6, 7), max_new_tokens=64)):
        pass
    return PlainTextResponse("done")


@pytest.fixture
def counted(played: Served) -> Iterator[LiveGateway]:
    with LiveGateway([played]) as live:
        live.add(Route("/ask", answering(ask), methods=["POST"]))
        yield live


def samples(live: LiveGateway) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = httpx2.get(f"{live.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_answers_are_counted_and_measured(counted: LiveGateway, completer: PlayedCompleter) -> None:
    httpx2.post(f"{counted.url}/ask").raise_for_status()
    counted.wait_for(lambda: counted.gateway.admission.running == 0)
    found = samples(counted)
    tokens = len(completer.tokens)
    assert found["swarm:prompt_tokens_total", TINY] == 3
    assert found["swarm:generation_tokens_total", TINY] == tokens
    assert found["swarm:prefix_cache_queries_total", TINY] == 3
    assert found["swarm:prefix_cache_hits_total", TINY] == 0
    assert found["swarm:time_to_first_token_seconds_count", TINY] == 1
    assert found["swarm:inter_token_latency_seconds_count", TINY] == tokens - 1
    assert found["swarm:e2e_request_latency_seconds_count", TINY] == 1
    assert found["swarm:request_queue_time_seconds_count", ()] == 1
    assert found["swarm:num_requests_running", TINY] == found["swarm:num_requests_waiting", ()] == 0
    assert found["swarm:request_success_total", (("finished_reason", "length"), *TINY)] == 1
    assert found["swarm:peers", (*TINY, ("state", "online"))] == 2
    assert found["swarm:blocks_missing", TINY] == 0


def test_what_happens_in_the_swarm_is_counted(counted: LiveGateway, completer: PlayedCompleter) -> None:
    lost = PeerId("id-of-ada")
    completer.before = [PeerLost(lost, "gone"), ChainChanged((), (lost,), 0.2, "why"), Step(0.05, 1, ())]
    httpx2.post(f"{counted.url}/ask").raise_for_status()
    found = samples(counted)
    assert found["swarm:peers_lost_total", TINY] == 1
    assert found["swarm:chain_recoveries_total", TINY] == 1
    assert found["swarm:chain_recovery_seconds_sum", TINY] == 0.2
    assert found["swarm:chain_step_seconds_sum", TINY] == 0.05
    assert found["swarm:chain_hops_count", TINY] == 1


def test_failures_are_counted_as_such(counted: LiveGateway, completer: PlayedCompleter) -> None:
    completer.error = NetworkError("the swarm is out of reach")
    assert httpx2.post(f"{counted.url}/ask").status_code == 503
    assert samples(counted)["swarm:request_success_total", (("finished_reason", "error"), *TINY)] == 1


def test_requests_make_no_labels_of_their_own(counted: LiveGateway) -> None:
    with httpx2.Client(base_url=counted.url) as client:
        for number in range(20):
            client.get(f"/made-up-{number}")
    found = {key: value for key, value in samples(counted).items() if key[0] == "swarm:http_requests_total"}
    assert found["swarm:http_requests_total", (("path", "other"), ("status", "404"))] == 20
    assert not any("made-up" in str(key) for key in found)
