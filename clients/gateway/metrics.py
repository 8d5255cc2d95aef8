"""What the gateway counts and measures, for Prometheus: vLLM's names under `swarm:`, and what only a swarm has."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clients.gateway.gateway import gateway_of
from clients.gateway.served import Served
from swarm.ids import Span
from swarm.record import PeerState

__all__ = ["Metrics", "ModelMetrics", "routes"]

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)  # of a whole answer, or until it begins
SHORT = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)  # of one token
SHOWN = tuple(state for state in PeerState if state is not PeerState.OFFLINE)
HOPS = (1, 2, 3, 4, 6, 8, 12, 16, 32)


class Metrics:
    """Of one gateway, in a registry of its own. Labels are models that are served here and words from fixed lists,
    whatever requests and peers say."""

    def __init__(self, models: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        label = ("model_name",)
        self._running = self._gauge("num_requests_running", "Requests that are being answered.", label)
        self.waiting = self._gauge("num_requests_waiting", "Requests that wait for their turn.")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.", label)
        self._generation = self._counter("generation_tokens", "Tokens of answers.", label)
        self._queries = self._counter("prefix_cache_queries", "Tokens of prompts that peers could have known.", label)
        self._hits = self._counter("prefix_cache_hits", "Tokens of prompts that peers still knew.", label)
        self._success = self._counter("request_success", "Answers that ended.", (*label, "finished_reason"))
        self._first = self._times("time_to_first_token_seconds", "From a request to its first token.", label, SECONDS)
        self._between = self._times("inter_token_latency_seconds", "From one token to the next.", label, SHORT)
        self._mean = self._times(
            "request_time_per_output_token_seconds", "From token to token, as the mean of an answer.", label, SHORT
        )
        self._whole = self._times("e2e_request_latency_seconds", "From a request to its end.", label, SECONDS)
        self.queue = self._times("request_queue_time_seconds", "Spent waiting for a turn.", (), SECONDS)
        self._hops = self._times("chain_hops", "Hops of chains that came into use.", label, HOPS)
        self._step = self._times("chain_step_seconds", "One trip around a chain: its round trip.", label, SHORT)
        self._recoveries = self._counter("chain_recoveries", "Chains that went on after a loss.", label)
        self._recovery = self._times("chain_recovery_seconds", "From a loss until the chain went on.", label, SECONDS)
        self._lost = self._counter("peers_lost", "Hops that failed under a session.", label)
        self._peers = self._gauge("peers", "Peers of a model, by state.", (*label, "state"))
        self._missing = self._gauge("blocks_missing", "Blocks of a model that no peer holds.", label)
        self._http = self._counter("http_requests", "Requests by path and status.", ("path", "status"))
        self._by_name = {name: ModelMetrics(self, name) for name in models}

    def of(self, model: str) -> "ModelMetrics":
        return self._by_name[model]

    def look(self, served: Served) -> None:
        """Take over what is known of a model's peers."""
        view = served.view
        for state in SHOWN:
            count = sum(record.state is state for record in view.peers)
            self._peers.labels(served.name, state.value).set(count)
        self._missing.labels(served.name).set(len(view.missing(Span(0, view.num_blocks))))

    def http(self, path: str, status: int) -> None:
        """`path`: that of a route, or another fixed word."""
        self._http.labels(path, str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, said: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"swarm:{name}", said, labels, registry=self.registry)

    def _gauge(self, name: str, said: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"swarm:{name}", said, labels, registry=self.registry)

    def _times(self, name: str, said: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"swarm:{name}", said, labels, buckets=buckets, registry=self.registry)


class ModelMetrics:
    """Those of one model."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._name = name
        self._success = metrics._success
        self.running = metrics._running.labels(name)
        self.prompt = metrics._prompt.labels(name)
        self.generation = metrics._generation.labels(name)
        self.queries = metrics._queries.labels(name)
        self.hits = metrics._hits.labels(name)
        self.first = metrics._first.labels(name)
        self.between = metrics._between.labels(name)
        self.mean = metrics._mean.labels(name)
        self.whole = metrics._whole.labels(name)
        self.hops = metrics._hops.labels(name)
        self.step = metrics._step.labels(name)
        self.recoveries = metrics._recoveries.labels(name)
        self.recovery = metrics._recovery.labels(name)
        self.lost = metrics._lost.labels(name)
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels(name, reason)  # so that they are there from the beginning

    def ended(self, reason: str) -> None:
        """`reason`: stop, length, abort (nobody wanted the rest) or error."""
        self._success.labels(self._name, reason).inc()


def routes() -> list[Route]:
    return [Route("/metrics", metrics)]


async def metrics(request: Request) -> Response:
    gateway = gateway_of(request)
    for served in gateway.models:
        if served.adapter is None:
            gateway.metrics.look(served)
    return Response(gateway.metrics.text(), media_type=CONTENT_TYPE_LATEST)
