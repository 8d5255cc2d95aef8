"""What the application says to requests that nobody can answer."""

import httpx2

from swarm.version import __version__
from tests.clients.gateway.live import LiveGateway


def test_health_and_version_need_nothing(live: LiveGateway) -> None:
    assert httpx2.get(f"{live.url}/health").json() == {"status": "ok"}
    assert httpx2.get(f"{live.url}/version").json() == {"version": __version__}


def test_ready_when_every_block_is_held(live: LiveGateway) -> None:
    answer = httpx2.get(f"{live.url}/ready")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)


def test_unknown_paths_of_the_api_are_answered_with_openais_error(live: LiveGateway) -> None:
    answer = httpx2.get(f"{live.base_url}/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "There is nothing at /v1/nothing",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_unknown_paths_elsewhere_are_answered_with_a_line(live: LiveGateway) -> None:
    answer = httpx2.get(f"{live.url}/nothing")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/plain; charset=utf-8")
