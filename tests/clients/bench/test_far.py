"""The process that plays long lines, in front of a real server."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from clients.bench.far import FarAway, Line, free_ports
from swarm.errors import SwarmError

DELAY = 0.1


@contextmanager
def echo_server() -> Iterator[int]:
    """Sends back what it gets; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=echo, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def echo(connection: socket.socket) -> None:
    with connection, suppress(ConnectionError):
        while data := connection.recv(1 << 16):
            connection.sendall(data)


def dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def exchange(port: int, data: bytes) -> tuple[bytes, float]:
    """What comes back for `data`, and after how many seconds."""
    with dial(port) as connection:
        begun = time.monotonic()
        connection.sendall(data)
        answer = b""
        while len(answer) < len(data):
            answer += connection.recv(1 << 16)
        return answer, time.monotonic() - begun


def test_what_is_said_comes_back_whole_and_two_delays_later() -> None:
    data = bytes(range(256)) * 2000
    with echo_server() as port, FarAway([port, port], Line(DELAY, bandwidth=1e9)) as far:
        assert len(set(far.ports)) == 2
        for each in far.ports:
            answer, seconds = exchange(each, data)
            assert answer == data
            assert seconds >= 2 * DELAY
    assert far.said["connections"] == 2
    assert far.said["bytes"] == 4 * len(data)


def test_end_of_one_side_is_the_end_of_the_other() -> None:
    with echo_server() as port, FarAway([port], Line(DELAY, bandwidth=1e9)) as far, dial(far.ports[0]) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_target_that_is_not_there_ends_the_connection() -> None:
    with FarAway(free_ports(1), Line(DELAY, bandwidth=1e9)) as far, dial(far.ports[0]) as connection:
        assert connection.recv(1) == b""


def test_line_that_can_not_be_played_is_an_error() -> None:
    with pytest.raises(SwarmError, match="ended at once"), FarAway([1], Line(DELAY, bandwidth=0.0)):
        pass


def test_ports_are_free_and_different() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_line_that_is_cut_breaks_what_went_over_it_and_what_its_end_had_dialled_and_nothing_else() -> None:
    with echo_server() as port, FarAway([port, port], Line(0.0, bandwidth=1e9)) as far:
        first, second = far.ports
        with dial(first) as to_it, dial(second) as from_it, dial(second) as strange:
            for connection in (to_it, from_it, strange):
                connection.sendall(b"hello")
                assert connection.recv(5) == b"hello"
            assert far.cut(0, [from_it.getsockname()[1]]) == 2
            for connection in (to_it, from_it):
                assert connection.recv(1) == b""
            strange.sendall(b"still")
            assert strange.recv(5) == b"still"
        assert exchange(first, b"again")[0] == b"again"


def test_who_dials_again_from_the_same_port_is_cut_again() -> None:
    """As libp2p does: while the end of the connection before it is still on its way."""
    with echo_server() as port, FarAway([port], Line(DELAY, bandwidth=1e9)) as far:
        place = ("", 0)
        for _ in range(2):
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                connection.settimeout(30)
                connection.bind(place)
                connection.connect(("127.0.0.1", far.ports[0]))
                place = connection.getsockname()
                connection.sendall(b"hello")
                assert connection.recv(5) == b"hello"
                assert far.cut(0) == 1
                with suppress(ConnectionError):
                    assert connection.recv(1) == b""
