"""Peers that live in homes of a wide-area network, end, and are replaced by others: all of one swarm, none for long.

Nobody is there for good, so whoever comes joins those who live just then.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import psutil

from swarm.errors import SwarmError
from swarm.ids import Span
from tests.processes import ServePeer
from tests.real.herd import family, still_there
from tests.soak.lives import Ending, Ledger, Life, lives
from tests.wan.wan import Host, Link, Wan

__all__ = ["Start", "Village"]

START_SECONDS = 180.0
CUT_SECONDS = (5.0, 20.0)  # for which a peer without a network lives on; shorter than any life
LEAVING_SECONDS = 90.0
UP, DOWN = Link(bandwidth=2.5e6), Link(bandwidth=12.5e6)  # a home's line: 20 and 100 Mbit/s


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds of a core that it took, and seconds by the clock."""

    cpu: float
    wall: float


@dataclass(slots=True)
class _Home:
    """Two hosts: whoever comes needs a network while that of who went is cut off."""

    number: int
    hosts: tuple[Host, Host]
    strangers: Host  # for those who have nothing to do with the swarm
    dice: random.Random
    peer: ServePeer | None = None
    span: Span | None = None  # served now, as the ledger knows
    service: int = 0  # number of it there
    second: bool = False  # which of the hosts it is on
    lives: bool = False  # nothing has happened to the peer yet


class Village:
    """A context manager. Blocking; `settle` it first."""

    def __init__(
        self, wan: Wan, model: Path, *options: str, homes: int, draw: random.Random, log: Callable[[str], None]
    ) -> None:
        """`options` of every peer; `log` hears what happens."""
        self.ledger = Ledger()
        self.starts: list[Start] = []
        self.endings: Counter[Ending] = Counter()
        self.complaints: list[str] = []  # of peers that did not begin or end as they should
        self.seen: list[psutil.Process] = []  # every process there ever was
        self._wan = wan
        self._model = model
        self._options = options
        self._log = log
        self._lock = threading.Lock()
        self._cut: set[Host] = set()
        self._hosts: list[Host] = []
        self._homes = [self._home(number, draw.random()) for number in range(homes)]
        self._names = 0
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="village-")))
        self._closing = threading.Event()
        self._undertakers = self._stack.enter_context(ThreadPoolExecutor(4 * homes))
        self._burials: list[Future[None]] = []

    # --- who lives ---

    @property
    def living(self) -> list[ServePeer]:
        with self._lock:
            return [home.peer for home in self._homes if home.peer is not None and home.peer.alive]

    @property
    def addresses(self) -> list[str]:
        return [address for peer in self.living for address in peer.addresses]

    @property
    def empty(self) -> set[str]:
        """Addresses of hosts on which nobody lives who serves."""
        used = {home.hosts[home.second].address for home in self._homes}
        return {host.address for host in self._hosts} - used

    # --- what happens ---

    def settle(self) -> None:
        """Somebody serves in every home."""
        first, *others = self._homes
        self._begin(first)
        self._everywhere(lambda home, _: self._begin(home), others, 0.0)
        self._undertakers.submit(self._follow)

    def churn(self, seconds: float) -> None:
        """Everybody lives as drawn, and is replaced at once; in the end somebody serves in every home again."""
        self._everywhere(self._live, self._homes, seconds)

    def bustle(self, seconds: float) -> None:
        """As many begin and go as in a churn, but in swarms of their own: what that costs this machine alone."""
        self._everywhere(self._pass, self._homes, seconds)

    def wait_burials(self) -> None:
        """Until all who had to go are gone."""
        for burial in self._burials:
            burial.result()
        self._burials.clear()

    def left_behind(self) -> list[psutil.Process]:
        return still_there(self.seen)

    def close(self) -> None:
        self._closing.set()
        for peer in self.living:
            peer.terminate()
        for home in self._homes:
            if home.peer is not None:
                home.peer.close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- inside ---

    def _home(self, number: int, seed: float) -> _Home:
        hosts = [self._wan.host(f"home{number}{letter}", up=UP, down=DOWN) for letter in "abz"]
        self._hosts += hosts[:2]
        return _Home(number, (hosts[0], hosts[1]), hosts[2], random.Random(seed))

    def _everywhere(self, live: Callable[[_Home, float], None], homes: Sequence[_Home], seconds: float) -> None:
        until = time.monotonic() + seconds
        with ThreadPoolExecutor(len(homes)) as pool:
            for done in [pool.submit(live, home, until) for home in homes]:
                done.result()

    def _live(self, home: _Home, until: float) -> None:
        for life in _waited(home.dice, until):
            self._end(home, life)
            self._begin(home, heir=life.heir)

    def _pass(self, home: _Home, until: float) -> None:
        for _ in _waited(home.dice, until):
            with self._peer("stranger", home.strangers, ["--new-swarm"]) as stranger:
                self._started(stranger)
                stranger.kill()

    def _begin(self, home: _Home, *, heir: bool = False) -> None:
        identity = home.peer.identity if heir and home.peer is not None else None
        if home.peer is not None and not heir:
            home.second = not home.second
        while True:
            entry = [f"--initial-peers={','.join(self.addresses)}"] if self.living else ["--new-swarm"]
            peer = self._peer(f"peer{home.number}", home.hosts[home.second], entry, identity)
            try:
                self._started(peer)
            except SwarmError as error:
                self.complaints.append(str(error))
                self._log(f"{peer.name} did not start: {error}")
                peer.close()
                continue
            with self._lock:
                home.peer, home.lives = peer, True
                self._note(home, peer.blocks)
            self._log(f"{peer.name} serves {peer.blocks} as {peer.peer_id[-6:]} ({self.starts[-1]})")
            return

    def _follow(self) -> None:
        """Peers move to other blocks by themselves; the ledger hears of it within a second."""
        while not self._closing.wait(1.0):
            with self._lock:
                for home in self._homes:
                    if home.peer is not None and home.lives and (span := _served(home.peer)) != home.span:
                        self._log(f"{home.peer.name} serves {span} instead of {home.span}")
                        self._note(home, span)

    def _note(self, home: _Home, span: Span | None) -> None:
        now = time.monotonic()
        if home.span is not None:
            self.ledger.end(home.service, now)
        home.span = span
        if span is not None:
            home.service = self.ledger.begin(span, now)

    def _peer(self, name: str, host: Host, entry: Sequence[str], identity: Path | None = None) -> ServePeer:
        with self._lock:
            self._names += 1
            name = f"{name}-{self._names}"
        key = identity or self._folder / f"{name}.key"
        options = [*self._options, "--public-name", name]
        return ServePeer(
            self._model, *options, entry=entry, identity=key, name=name, host=host.address, prefix=host.prefix
        )

    def _started(self, peer: ServePeer) -> None:
        """Waits until it serves, and notes what that took. Raises SwarmError."""
        began = time.monotonic()
        peer.wait_ready(START_SECONDS)
        processes = family(peer)
        self.seen += processes
        cpu = sum(used.user + used.system for used in (process.cpu_times() for process in processes))
        self.starts.append(Start(cpu, time.monotonic() - began))

    def _end(self, home: _Home, life: Life) -> None:
        peer, host = home.peer, home.hosts[home.second]
        assert peer is not None
        self._log(f"{peer.name} is {life.ending} after {life.seconds:.0f} s")
        with self._lock:
            home.lives = False
            self._note(home, None)
        self.endings[life.ending] += 1
        if not peer.alive:
            self.complaints.append(f"{peer.name} had ended: {peer.log[-5:]}")
        if life.ending is Ending.KILLED:
            peer.kill()
            peer.close()
            return
        if life.ending is Ending.TOLD:
            peer.terminate()
            burial = self._undertakers.submit(self._see_off, peer)
        else:
            self._part(host)
            burial = self._undertakers.submit(self._forget, peer, host, home.dice.uniform(*CUT_SECONDS))
        self._burials.append(burial)

    def _see_off(self, peer: ServePeer) -> None:
        try:
            code = peer.wait(LEAVING_SECONDS)
            drained = next((line for line in reversed(peer.log) if "drained" in line), "")
            self._log(f"{peer.name} left with {code}: {drained}")
            if code != 0:
                self.complaints.append(f"{peer.name} left with {code}: {peer.log[-5:]}")
        except SwarmError as error:
            self.complaints.append(str(error))
        peer.close()

    def _forget(self, peer: ServePeer, host: Host, seconds: float) -> None:
        time.sleep(seconds)
        peer.kill()
        peer.close()
        self._part(host, healed=True)

    def _part(self, host: Host, *, healed: bool = False) -> None:
        """Who is cut off hears nobody; everybody else hears each other."""
        with self._lock:
            self._cut = self._cut - {host} if healed else self._cut | {host}
            others = [other for other in self._wan.hosts if other not in self._cut]
            self._wan.partition(others, *([cut] for cut in self._cut))


def _served(peer: ServePeer) -> Span | None:
    """None while it moves."""
    for event in reversed(peer.events):
        if event.get("event") == "ready":
            start, end = event["blocks"]
            return Span(start, end)
        if str(event.get("message", "")).startswith("moving from"):
            return None
    return None


def _waited(dice: random.Random, until: float) -> Iterator[Life]:
    """Lives, each when it has passed; the first began long ago."""
    for number, life in enumerate(lives(dice)):
        wait = life.seconds * (1.0 if number else dice.random())
        left = until - time.monotonic()
        time.sleep(max(0.0, min(wait, left)))
        if wait > left:
            return
        yield life
