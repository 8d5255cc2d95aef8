"""Hosts hear each other as their links say, and nothing of them is left behind."""

import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from swarm.errors import SwarmError
from tests.wan.wan import Host, Link, Wan

LIMIT = 30.0  # seconds for what should take none
GIVE_UP = 0.3  # seconds for what never comes
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.soak  # until they have been seen to pass on other machines


def ears(host: Host, limit: float = LIMIT) -> socket.socket:
    made = host.socket(socket.SOCK_DGRAM)
    made.settimeout(limit)
    return made


def hears(sender: Host, listener: Host, limit: float = LIMIT) -> bool:
    """Whether a datagram of one arrives at the other."""
    with ears(listener, limit) as there, ears(sender) as here:
        here.sendto(b"hello", there.getsockname())
        try:
            return there.recv(100) == b"hello"
        except TimeoutError:
            return False


def test_round_trip_takes_both_delays_and_large_packets_pass(able: None) -> None:
    with Wan(mtu=9000) as wan:
        a, b = wan.host("a"), wan.host("b")
        wan.link(a, b, Link(delay=0.03), Link(delay=0.05))
        with ears(a) as here, ears(b) as there:
            begun = time.monotonic()
            here.sendto(b"x" * 8900, there.getsockname())
            there.sendto(there.recv(10_000), here.getsockname())
            assert here.recv(10_000) == b"x" * 8900
            assert time.monotonic() - begun >= 0.08


def test_bandwidth_bounds_a_stream_and_its_bytes_arrive(wan: Wan) -> None:
    a, b = wan.host("a", up=Link(bandwidth=2e6)), wan.host("b")
    data = bytes(range(256)) * 2000
    with b.socket() as server, a.socket() as here, ThreadPoolExecutor(1) as pool:
        for end in (server, here):
            end.settimeout(LIMIT)
        server.listen()
        here.connect(server.getsockname())
        there, _ = server.accept()
        with there:
            begun = time.monotonic()
            sending = pool.submit(here.sendall, data)
            assert there.makefile("rb").read(len(data)) == data
            assert time.monotonic() - begun >= len(data) / 2e6
            sending.result(LIMIT)


def test_lost_packets_do_not_arrive_and_are_counted(wan: Wan) -> None:
    a, b = wan.host("a"), wan.host("b")
    wan.link(a, b, Link(loss=1.0), Link())
    assert not hears(a, b, GIVE_UP)
    assert hears(b, a)
    assert wan.counts() == {"sent": 2, "delivered": 1, "lost": 1, "parted": 0, "refused": 0}


def test_partition_parts_its_groups_alone_until_it_heals(wan: Wan) -> None:
    a, b, c = wan.host("a"), wan.host("b"), wan.host("c")
    wan.partition([a], [b])
    assert [hears(a, b, GIVE_UP), hears(b, a, GIVE_UP)] == [False, False]
    assert [hears(a, c), hears(c, b)] == [True, True]
    wan.heal()
    assert hears(a, b)


def test_partition_takes_packets_under_way(wan: Wan) -> None:
    a, b = wan.host("a"), wan.host("b")
    wan.link(a, b, Link(delay=10 * LIMIT))
    with ears(a) as here, ears(b) as there:
        here.sendto(b"too late", there.getsockname())
        wan.partition([a], [b])
    assert wan.counts()["parted"] == 1


def test_host_behind_nat_dials_and_is_not_dialled(wan: Wan) -> None:
    home, away = wan.host("home", nat=True), wan.host("away")
    assert not hears(away, home, GIVE_UP)
    with away.socket() as server, home.socket() as here:
        server.listen()
        server.settimeout(LIMIT)
        here.settimeout(LIMIT)
        here.connect(server.getsockname())
        there, _ = server.accept()
        with there:
            there.sendall(b"in")
            assert here.recv(100) == b"in"
    with home.socket() as server, away.socket() as caller:
        server.listen()
        caller.settimeout(GIVE_UP)
        with pytest.raises(TimeoutError):
            caller.connect(server.getsockname())
    assert wan.counts()["refused"] >= 2


def test_command_runs_on_a_host_with_nothing_but_its_own_network(wan: Wan) -> None:
    host = wan.host("a")
    devices = [line.split(":")[0].strip() for line in host.run(["cat", "/proc/net/dev"]).splitlines()[2:]]
    assert {"lo", "wan0"} <= set(devices)
    assert "eth0" not in devices
    with host.socket() as server:
        server.listen()
        code = f"import socket; print(socket.create_connection({server.getsockname()!r}).getpeername()[0])"
        assert host.run([sys.executable, "-c", code]).strip() == host.address


def test_hosts_have_names_of_their_own(wan: Wan) -> None:
    wan.host("a")
    with pytest.raises(ValueError, match="host 'a' already"):
        wan.host("a")


def test_router_that_is_gone_is_told_of(wan: Wan) -> None:
    psutil.Process(wan.pid).kill()
    with pytest.raises(SwarmError, match="router of the wide-area network is gone"):
        wan.host("a")


def test_whoever_is_left_on_a_host_ends_with_the_network(able: None) -> None:
    with Wan() as wan:
        left = subprocess.Popen([*wan.host("a").prefix, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert left.stdin is not None
        assert left.stdout is not None
        left.stdin.write(b"here\n")
        left.stdin.flush()
        assert left.stdout.readline() == b"here\n"
    with left:
        assert left.wait(LIMIT) == -signal.SIGKILL


ABANDONED = """
import subprocess, sys
from tests.wan.wan import Wan
wan = Wan()
left = subprocess.Popen([*wan.host("a").prefix, "sleep", "1000"])
print(wan.pid, left.pid, flush=True)
sys.stdin.read()
"""


def test_sigkill_of_who_made_the_network_leaves_nothing(able: None) -> None:
    maker = subprocess.Popen(
        [sys.executable, "-c", ABANDONED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    with maker:
        assert maker.stdout is not None
        left = [psutil.Process(int(pid)) for pid in maker.stdout.readline().split()]
        assert len(left) == 2
        maker.kill()
        assert psutil.wait_procs(left, LIMIT)[1] == []
