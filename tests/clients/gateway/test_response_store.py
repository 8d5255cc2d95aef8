"""Responses are kept for their owners, for a time, and no more than fit."""

import pytest

from clients.gateway.conversation import Turn
from clients.gateway.errors import ApiError
from clients.gateway.response_store import KEPT_SECONDS, ResponseStore

HI = (Turn("user", "Hi"),)


def test_nobody_else_sees_a_response() -> None:
    store = ResponseStore()
    store.put("ada", HI, {"id": "a"})
    assert store.get("ada", "a").turns == HI
    with pytest.raises(ApiError):
        store.get("bela", "a")
    with pytest.raises(ApiError):
        store.remove("bela", "a")
    store.remove("ada", "a")
    with pytest.raises(ApiError):
        store.get("ada", "a")


def test_responses_expire() -> None:
    now = [0.0]
    store = ResponseStore(clock=lambda: now[0])
    store.put("ada", HI, {"id": "a"})
    now[0] = KEPT_SECONDS
    assert store.get("ada", "a")
    now[0] += 1
    with pytest.raises(ApiError) as caught:
        store.get("ada", "a", param="previous_response_id")
    assert (caught.value.status, caught.value.code) == (400, "previous_response_not_found")


def test_the_oldest_give_way() -> None:
    few = ResponseStore(most=2)
    small = ResponseStore(most_bytes=300)
    for store in (few, small):
        for id_ in ("a", "b", "c"):
            store.put("ada", (Turn("user", "x" * 100),), {"id": id_})
        assert store.get("ada", "c")
        assert store.get("ada", "b")
        with pytest.raises(ApiError):
            store.get("ada", "a")
