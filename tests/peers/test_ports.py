"""Peers of one machine and where they listen."""

import socket
from pathlib import Path

from peers.ports import hold_port
from swarm.entrance import USUAL_PORT

HOME = "127.0.0.9"  # where no other peer of this machine listens


def test_first_peer_gets_the_usual_port_and_those_that_start_meanwhile_another(tmp_path: Path) -> None:
    with hold_port(HOME, None, tmp_path) as first, hold_port(HOME, None, tmp_path) as second:
        assert (first, second) == (USUAL_PORT, 0)
    with hold_port(HOME, None, tmp_path) as next_time:
        assert next_time == USUAL_PORT


def test_port_that_somebody_else_has_is_not_taken(tmp_path: Path) -> None:
    with socket.create_server((HOME, USUAL_PORT)), hold_port(HOME, None, tmp_path) as port:
        assert port == 0


def test_port_that_was_asked_for_is_taken_at_its_word(tmp_path: Path) -> None:
    with hold_port(HOME, 4711, tmp_path) as port:
        assert port == 4711
