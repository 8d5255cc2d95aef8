import fcntl
import resource
import socket
from collections.abc import Iterator

import pytest

from peers.inlet import Inlet, SocketEnded
from peers.pipe import Kind, Packet, pack
from swarm.errors import WireError
from swarm.ids import PeerId

PACKETS = [Packet(Kind.FRAME, PeerId("p"), bytes(size)) for size in (0, 5, 3000)]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_everything_that_is_there_comes_at_once_and_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    inlet = Inlet(theirs)
    for packet in PACKETS:
        ours.sendall(pack(packet.kind, packet.content, packet.peer))
    assert inlet.take_all(10.0) == PACKETS
    assert inlet.take_all(0.0) == []


def test_half_a_packet_waits_for_its_other_half(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    inlet = Inlet(theirs)
    data = pack(Kind.GONE, b"", "someone")
    ours.sendall(data[:4])
    assert inlet.take_all(10.0) == []
    ours.sendall(data[4:])
    assert inlet.take_all(10.0) == [Packet(Kind.GONE, PeerId("someone"), b"")]


def test_the_end_of_the_socket_is_said(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    inlet = Inlet(theirs)
    ours.close()
    with pytest.raises(SocketEnded):
        inlet.take_all(10.0)


def test_nonsense_is_said(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(bytes(16))
    with pytest.raises(WireError):
        Inlet(theirs).take_all(10.0)


@pytest.fixture
def high_descriptor(pair: tuple[socket.socket, socket.socket]) -> Iterator[socket.socket]:
    """The second socket under a number beyond what `select` takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(2048, hard)), hard))
    try:
        with socket.socket(fileno=fcntl.fcntl(pair[1], fcntl.F_DUPFD_CLOEXEC, 1500)) as high:
            yield high
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_network_process_with_many_streams_hands_down_a_high_descriptor(
    pair: tuple[socket.socket, socket.socket], high_descriptor: socket.socket
) -> None:
    pair[0].sendall(pack(Kind.GONE))
    assert Inlet(high_descriptor).take_all(10.0) == [Packet(Kind.GONE, PeerId(""), b"")]
