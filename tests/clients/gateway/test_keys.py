"""API keys, as they are written down and as they are sent."""

from pathlib import Path

import httpx2
import pytest
from starlette.datastructures import Headers

from clients.gateway.allowance import Limits
from clients.gateway.errors import ApiError
from clients.gateway.keys import Key, Keys, parse_keys
from clients.gateway.served import Served
from swarm.errors import UsageError
from tests.clients.gateway.live import LiveGateway

ALICE = "sk-alice-0123456789abcdef"
BOB = "sk-bob-0123456789abcdef"


def keys(*texts: str) -> Keys:
    return Keys(parse_keys(texts), lambda: 0.0)


def bearer(secret: str) -> Headers:
    return Headers({"Authorization": f"Bearer {secret}"})


def test_keys_are_words_followed_by_what_belongs_to_them() -> None:
    alice, bob = parse_keys([f"{ALICE} name=alice requests=60", "concurrent=4", BOB])
    assert (alice.name, alice.limits) == ("alice", Limits(requests=60, concurrent=4))
    assert (bob.name, bob.limits) == ("key-2", Limits())


def test_a_file_has_a_key_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may\n{ALICE} name=alice tokens=20000  # a friend\n\n{BOB}\n")
    assert [key.name for key in parse_keys([str(file)])] == ["alice", "key-2"]


def test_the_key_itself_is_not_kept() -> None:
    (key,) = parse_keys([ALICE])
    assert ALICE not in repr(key)
    assert ALICE.encode() not in key.digest
    assert len(key.digest) == 32


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["secret"], "no such file, and as a key it is too short"),
        ([f"{ALICE}é"], "that can't be an API key"),
        (["name=alice"], "name= has to follow the key"),
        ([f"{ALICE} requests=0"], "a whole number of at least 1"),
        ([f"{ALICE} requests=many"], "a whole number of at least 1"),
        ([f"{ALICE} name=<b>"], "a key's name is made of letters"),
        ([ALICE, ALICE], "two API keys are the same"),
        ([f"{ALICE} name=x", f"{BOB} name=x"], "two API keys have the same name"),
    ],
)
def test_what_is_no_key_is_refused_without_showing_it(texts: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as refused:
        parse_keys(texts)
    assert "secret" not in str(refused.value).replace("import secrets", "").replace("secrets.token", "")
    assert ALICE not in str(refused.value)


def test_an_empty_file_of_keys_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# nobody yet\n")
    with pytest.raises(UsageError, match="is empty"):
        parse_keys([str(file)])


def test_both_ways_to_send_a_key() -> None:
    known = keys(f"{ALICE} name=alice", f"{BOB} name=bob")
    assert known.user(bearer(ALICE)).name == "alice"
    assert known.user(Headers({"x-api-key": BOB})).name == "bob"
    assert known.user(bearer(ALICE)) is known.user(bearer(ALICE))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ALICE},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": f"Bearer {ALICE[:-1]}"},
        {"Authorization": "Bearer "},
        {"x-api-key": "é" * 20},
    ],
)
def test_wrong_and_missing_keys_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ApiError) as refused:
        keys(ALICE).user(Headers(headers))
    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")


def test_without_keys_anyone_may() -> None:
    open_door = keys()
    assert not open_door.needed
    assert open_door.user(Headers({})) is open_door.user(bearer(ALICE))


@pytest.fixture
def given() -> tuple[Key, ...]:
    return parse_keys([f"{ALICE} name=alice"])


def test_the_api_needs_a_key_and_health_does_not(played: Served, given: tuple[Key, ...]) -> None:
    with LiveGateway([played], keys=given) as live:
        assert httpx2.get(f"{live.url}/health").status_code == 200
        assert httpx2.get(f"{live.url}/ready").status_code == 200
        refused = httpx2.get(f"{live.base_url}/nothing")
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"
        assert httpx2.get(f"{live.base_url}/nothing", headers={"x-api-key": ALICE}).status_code == 404


def test_anthropics_paths_have_anthropics_errors(played: Served, given: tuple[Key, ...]) -> None:
    with LiveGateway([played], keys=given) as live:
        refused = httpx2.post(f"{live.base_url}/messages").json()
    assert refused["type"] == "error"
    assert refused["error"]["type"] == "authentication_error"
