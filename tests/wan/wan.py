"""Hosts, and what lies between them, from Python.

with Wan(Link(delay=0.025)) as wan:
    here, home = wan.host("here"), wan.host("home", nat=True)
    wan.link(here, home, Link(delay=0.1, bandwidth=1e6, loss=0.01))
    home.run(["ip", "address"])
    wan.partition([here], [home])
    wan.heal()

Nothing of it has a name on this machine, and nothing outlives the process that made it, however that ends.
"""

import ipaddress
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from swarm.errors import SwarmError
from tests.wan.link import Link
from tests.wan.namespace import inside

__all__ = ["Host", "Link", "Wan"]

# libp2p treats private addresses and those for documentation in ways of their own, so these look public. They are seen
# inside the namespaces only.
NETWORK = ipaddress.IPv4Network("11.0.0.0/16")
ROOT = Path(__file__).parents[2]
GRACE = 15.0  # seconds for the router to end


@dataclass(frozen=True, slots=True)
class Host:
    """A machine with a loopback and one address, which everybody may dial unless it is behind NAT."""

    name: str
    address: str
    namespace: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        """In front of a command, it makes it run on this host."""
        return ("nsenter", f"--net={self.namespace}", "--")

    def run(self, arguments: Sequence[str], limit: float = 60.0) -> str:
        """What a command on this host writes. Raises CalledProcessError, TimeoutExpired."""
        done = subprocess.run([*self.prefix, *arguments], stdout=subprocess.PIPE, timeout=limit, check=True, text=True)
        return done.stdout

    def inside(self) -> AbstractContextManager[None]:
        """A context manager: this thread is on this host, and so is every thread and process that it starts there,
        for good."""
        return inside(self.namespace)

    def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM, port: int = 0) -> socket.socket:
        """A socket of this host, bound to its address."""
        with self.inside():
            made = socket.socket(socket.AF_INET, kind)
        made.bind((self.address, port))
        return made


class Wan:
    """A context manager. `link` is between all hosts for which there is no other. Thread-safe."""

    def __init__(self, link: Link | None = None, *, mtu: int = 1500, seed: int = 0) -> None:
        """`mtu`: bytes of the largest packet. `seed` of loss and jitter."""
        self._hosts: dict[str, Host] = {}
        self._lock = threading.Lock()
        self._router = subprocess.Popen(
            [sys.executable, "-m", "tests.wan.router", str(NETWORK.netmask), str(mtu), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,  # so that a Ctrl-C lets tests clean up first
        )
        self.link(None, None, link or Link())

    def host(self, name: str, *, up: Link | None = None, down: Link | None = None, nat: bool = False) -> Host:
        """One more host. `up` and `down`: its own line, which all that it sends or is sent goes through. Behind `nat`
        it can dial, and can't be dialled."""
        if name in self._hosts:
            raise ValueError(f"there is a host '{name}' already")
        address = str(NETWORK[len(self._hosts) + 1])
        lines = {"up": asdict(up or Link()), "down": asdict(down or Link())}
        answer = self._order(do="host", name=name, address=address, nat=nat, **lines)
        host = Host(name, address, Path(f"/proc/{self._router.pid}/fd/{answer['namespace']}"))
        self._hosts[name] = host
        return host

    @property
    def hosts(self) -> tuple[Host, ...]:
        return tuple(self._hosts.values())

    def link(self, a: Host | None, b: Host | None, there: Link, back: Link | None = None) -> None:
        """What lies between two hosts, from now on: `there` from `a` to `b`, and `back`, by default the same. Without
        hosts: between all others."""
        pairs = [None] if a is None or b is None else [[a.name, b.name], [b.name, a.name]]
        for pair, link in zip(pairs, (there, back or there), strict=False):
            self._order(do="link", between=pair, link=asdict(link))

    def partition(self, *groups: Sequence[Host]) -> None:
        """From now on hosts of different groups hear nothing of each other; packets under way are lost. Hosts of no
        group hear everyone. It replaces any other partition."""
        self._order(do="partition", groups=[[host.name for host in group] for group in groups])

    def heal(self) -> None:
        """The end of a partition."""
        self.partition()

    def counts(self) -> Mapping[str, int]:
        """Packets so far: `sent`, and of these `delivered`, `lost`, `parted` (by a partition), `refused` (by NAT)."""
        return {"sent": 0, "delivered": 0, "lost": 0, "parted": 0, "refused": 0, **self._order(do="counts")}

    @property
    def pid(self) -> int:
        """Of the router."""
        return self._router.pid

    def close(self) -> None:
        """Whoever is still on a host is killed. Safe to repeat."""
        assert self._router.stdin is not None
        assert self._router.stdout is not None
        self._router.stdin.close()
        try:
            self._router.wait(GRACE)
        finally:
            self._router.kill()
            self._router.wait()
            self._router.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _order(self, **order: Any) -> dict[str, Any]:
        """The router's answer. Raises SwarmError."""
        assert self._router.stdin is not None
        assert self._router.stdout is not None
        with self._lock:
            try:
                self._router.stdin.write(json.dumps(order).encode() + b"\n")
                self._router.stdin.flush()
            except OSError:
                raise SwarmError("the router of the wide-area network is gone") from None
            line = self._router.stdout.readline()
        if not line:
            raise SwarmError("the router of the wide-area network is gone")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SwarmError(f"the router can't obey {order}: {answer['error']}")
        return answer
