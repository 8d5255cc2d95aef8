import logging

import pytest

from peers.seldom import Seldom
from tests.peers.ring import Clock


def test_a_flood_of_events_is_a_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    seldom = Seldom(logging.getLogger("test"), clock, every=10.0)
    for _ in range(100):
        seldom.warning("peer %s", "a")
    clock.now = 10.0
    seldom.warning("peer %s", "b")
    assert caplog.messages == ["peer a", "peer b (and 99 such events before)"]
