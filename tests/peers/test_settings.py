from pathlib import Path
from typing import Any

import pytest

from peers.settings import ServeSettings, parse_adapters, parse_precision
from swarm.entrance import announced_addresses
from swarm.errors import UsageError
from swarm.ids import Span

PEER = "/ip4/127.0.0.1/tcp/31330/p2p/12D3KooWGRUVh8ZDB8nTBCPNmKrVoGUrqVuRVuMcHkBPWKmd6yZi"


def settings(**options: Any) -> ServeSettings:
    return ServeSettings(model="tiny", data=Path("data"), cache=Path("cache"), **options)


def test_swarm_must_be_joined_or_begun() -> None:
    with pytest.raises(UsageError, match=r"--initial-peers.*--new-swarm"):
        settings()


def test_swarm_is_not_both_joined_and_begun() -> None:
    with pytest.raises(UsageError, match="only one"):
        settings(new_swarm=True, initial_peers=(PEER,))


def test_peer_that_stands_by_cannot_begin_a_swarm() -> None:
    with pytest.raises(UsageError, match="--standby is for a swarm that others serve"):
        settings(new_swarm=True, standby=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"blocks": Span(0, 2), "num_blocks": 2}, "only one"),
        ({"standby_below": 0}, "--standby-below .* at least 1"),
        ({"num_blocks": 0}, "--num-blocks .* at least 1"),
        ({"port": 65536}, "--port .* between 0 and 65535"),
        ({"threads": 0}, "--threads"),
        ({"kv_tokens": 0}, "--kv-cache-tokens"),
        ({"precision": "fp17"}, "--dtype is one of"),
        ({"device": "tpu"}, "--device is"),
        ({"public_name": "x" * 65}, "--public-name"),
        ({"adapters": (("no name", "folder"),)}, "--adapters: 'no name' can't be a name, .* NAME=FOLDER"),
        ({"adapters": (("a", "here"), ("a", "there"))}, "--adapters: two are called 'a'"),
        ({"adapters": tuple((f"a{n}", "folder") for n in range(9))}, "--adapters: a peer hosts at most 8, not 9"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        settings(new_swarm=True, **options)


@pytest.mark.parametrize(("text", "name"), [("float32", "fp32"), ("torch.bfloat16", "bf16"), ("BF16", "bf16")])
def test_precisions_go_by_their_long_names_too(text: str, name: str) -> None:
    assert parse_precision(text) == name


@pytest.mark.parametrize(
    ("text", "port", "address"),
    [
        ("203.0.113.7:4001", None, "/ip4/203.0.113.7/tcp/4001"),
        ("203.0.113.7", 4002, "/ip4/203.0.113.7/tcp/4002"),
        ("2001:db8::1", 4003, "/ip6/2001:db8::1/tcp/4003"),
        ("[2001:db8::1]:4004", None, "/ip6/2001:db8::1/tcp/4004"),
        ("/dns4/peer.example/tcp/4005", None, "/dns4/peer.example/tcp/4005"),
    ],
)
def test_announced_addresses_are_written_as_people_write_them(text: str, port: int | None, address: str) -> None:
    assert announced_addresses([text], port) == (address,)


@pytest.mark.parametrize("text", ["example.org:4001", "203.0.113.7", "203.0.113.7:0"])
def test_announced_address_without_ip_or_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--announce"):
        announced_addresses([text], None)


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("style=runs/last", "style", "runs/last"),
        ("runs/style/", "style", "runs/style/"),
        ("somebody/style", "style", "somebody/style"),
        ("runs/lr=0.1/style", "style", "runs/lr=0.1/style"),
        ("style=", "style=", "style="),
    ],
)
def test_adapters_are_called_as_they_are_told_or_as_their_folder_is(text: str, name: str, source: str) -> None:
    assert parse_adapters([text]) == ((name, source),)
