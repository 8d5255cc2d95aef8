"""Options of `swarm gateway` that don't go together, and what they mean for who may come in."""

from pathlib import Path
from typing import Any

import pytest

from clients.gateway.policy import LOOPBACK
from clients.gateway.ready import ReadyGateway, ReadyModel
from clients.gateway.settings import GatewaySettings
from swarm.errors import UsageError


def settings(**changes: Any) -> GatewaySettings:
    return GatewaySettings(**{"models": ("smollm2",), "initial_peers": (), "cache": Path("/nowhere"), **changes})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"port": 70000}, "--port is a whole number between 0 and 65535, not 70000"),
        ({"running": 0}, "--max-running is a whole number between 1"),
        ({"queue": -1}, "--queue is a whole number between 0"),
        ({"tls_cert": Path("/nowhere")}, "--tls-cert and --tls-key go together"),
        ({"tls_cert": Path("/nowhere/c"), "tls_key": Path("/nowhere/k")}, "--tls-cert: there is no file /nowhere/c"),
        ({"cors_origins": ("chat.example",)}, "--cors-origin 'chat.example': give"),
        ({"cors_origins": ("https://chat.example/page",)}, "--cors-origin 'https://chat.example/page': give"),
        ({"models": ("smollm2", "smollm2")}, "smollm2 is named twice"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        settings(**changes)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost"])
def test_loopback_insists_on_its_names(host: str) -> None:
    assert settings(host=host).local
    assert settings(host=host).policy.hosts == LOOPBACK | {host.strip("[]")}


def test_other_addresses_take_any_name_unless_some_are_given() -> None:
    assert not settings(host="0.0.0.0").local
    assert settings(host="0.0.0.0").policy.hosts is None
    given = settings(host="0.0.0.0", allowed_hosts=("Chat.Example",)).policy.hosts
    assert given == LOOPBACK | {"0.0.0.0", "chat.example"}


def ready(**changes: Any) -> ReadyGateway:
    plain = {"host": "127.0.0.1", "port": 8000, "tls": False, "local": True, "keys": 0}
    return ReadyGateway(**{**plain, "models": [ReadyModel("smollm2", None)], **changes})


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "tls": True}, "https://127.0.0.1:8000"),
        ({"host": "::"}, "http://[::1]:8000"),
        ({"host": "chat.example", "port": 80}, "http://chat.example:80"),
    ],
)
def test_the_ready_block_names_what_this_machine_can_open(changes: dict[str, Any], url: str) -> None:
    shown = ready(**changes)
    assert shown.event()["base_url"] == f"{url}/v1"
    assert f"export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=none" in shown.text()


def test_a_model_that_can_not_answer_yet_is_named_with_its_reason() -> None:
    shown = ready(models=[ReadyModel("smollm2", None), ReadyModel("qwen3-0.6b", "no peer serves it")])
    assert "qwen3-0.6b (not yet: no peer serves it)" in shown.text()
    assert [model["ready"] for model in shown.event()["models"]] == [True, False]


def test_being_open_to_others_is_said() -> None:
    assert ready().warnings() == []
    assert [warning[:6] for warning in ready(local=False).warnings()] == ["anyone", "keys a"]
    assert len(ready(local=False, keys=1).warnings()) == 1
    assert ready(local=False, keys=1, tls=True).warnings() == []
