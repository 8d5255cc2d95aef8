"""Where peers of a swarm were seen, so that it is found again after everybody at the addresses one was given has gone.

In memory for as long as a process takes part, and in a small file for the next one. The file is named after the
addresses that were given, so that two swarms are never mixed up. What stands in it decides whom to try, and nothing
else: whoever answers has to prove who they are, as always.
"""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path

from swarm import atomic
from swarm.dialling import why_no_connection
from swarm.ids import PeerId
from swarm.messages import Contact

__all__ = ["Acquaintances", "file_of", "ways_in"]

MOST_KNOWN = 256  # peers
MOST_KEPT = 32  # of these in the file, those seen last
MOST_FILES = 16  # in a folder: of the swarms that were joined last
MOST_ADDRESSES = 4  # of each
MOST_CHARACTERS = 256  # of an address
STALE_SECONDS = 14 * 24 * 3600.0  # after which an entry is dropped
SAVE_SECONDS = 3600.0  # after which what is the same is written again, since it was seen since
MOST_BYTES = 1 << 17  # of a file that is read

_ADDRESS = re.compile(r"(/[^/\s]+)+/p2p/([1-9A-HJ-NP-Za-km-z]{40,64})")

_log = logging.getLogger(__name__)


def file_of(folder: Path, initial_peers: Iterable[str]) -> Path:
    """Where those are kept who were seen by who joined through `initial_peers`, in a user's `folder`."""
    ids = sorted({address.rpartition("/p2p/")[2] for address in initial_peers})
    return folder / "seen" / f"{hashlib.sha256(' '.join(ids).encode()).hexdigest()[:16]}.json"


class Acquaintances:
    """`given`: the addresses that one was told, which are never forgotten. `path`: of the file, if there is one."""

    def __init__(
        self, given: Iterable[str] = (), path: Path | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._clock = clock
        self._given = _by_peer(given)
        self._seen: dict[PeerId, tuple[float, tuple[str, ...]]] = {}  # when, and where; the latest is last
        self._saved: tuple[float, frozenset[Contact]] = (-inf, frozenset())
        if path is not None:
            self._read(path)

    def saw(self, contact: Contact) -> None:
        """`contact` was alive just now, says its record."""
        addresses = tuple(one for one in contact.addresses if _good(one, contact.peer))[:MOST_ADDRESSES]
        if not addresses:
            return
        self._seen.pop(contact.peer, None)
        self._seen[contact.peer] = self._clock(), addresses
        if len(self._seen) > MOST_KNOWN:
            del self._seen[next(iter(self._seen))]

    def contacts(self) -> tuple[Contact, ...]:
        """All that are known, those seen last first, then those that were given."""
        seen = {peer: addresses for peer, (_, addresses) in reversed(self._seen.items())}
        return tuple(Contact(peer, addresses) for peer, addresses in (seen | self._given).items())

    def save(self) -> None:
        """For the next process; where it can't be written, that is said once in the log and nothing else."""
        last = list(self._seen.items())[-MOST_KEPT:]
        now, who = self._clock(), frozenset(Contact(peer, addresses) for peer, (_, addresses) in last)
        if self._path is None or (who == self._saved[1] and now < self._saved[0] + SAVE_SECONDS):
            return
        self._saved = now, who
        text = json.dumps([[peer, when, addresses] for peer, (when, addresses) in last])
        try:
            atomic.write_file(self._path, text.encode())
            _prune(self._path.parent)
        except OSError as error:
            _log.warning("the peers that were seen can't be kept for the next start: %s", error)
            self._path = None

    def _read(self, path: Path) -> None:
        """What is no such file counts as none."""
        with suppress(OSError, ValueError, TypeError, RecursionError):
            with path.open("rb") as file:
                entries = json.loads(file.read(MOST_BYTES))
            now = self._clock()
            for peer, when, addresses in entries[-MOST_KEPT:]:
                fresh = isinstance(when, int | float) and now - STALE_SECONDS < when
                if fresh and addresses and all(_good(address, peer) for address in addresses):
                    self._seen[PeerId(peer)] = min(when, now), tuple(addresses[:MOST_ADDRESSES])


async def ways_in(given: Sequence[str], path: Path) -> tuple[str, ...]:
    """`given`, and after them addresses from the file where somebody listens, if nobody does at any of `given`."""
    if await _answering(given):
        return tuple(given)
    known = [address for contact in Acquaintances(path=path).contacts() for address in contact.addresses]
    others = await _answering(known)
    if others:
        _log.warning("nobody is at the addresses of the initial peers; joining through peers seen before")
    return (*given, *others)


async def _answering(addresses: Sequence[str]) -> list[str]:
    """Those where a connection can be made, or where it can't be tried because they are not plain TCP."""
    troubles = await asyncio.gather(*map(why_no_connection, addresses))
    return [address for address, trouble in zip(addresses, troubles, strict=True) if trouble is None]


def _prune(folder: Path) -> None:
    """Raises OSError."""
    for old in sorted(folder.glob("*.json"), key=lambda file: -file.stat().st_mtime)[MOST_FILES:]:
        old.unlink(missing_ok=True)


def _by_peer(addresses: Iterable[str]) -> dict[PeerId, tuple[str, ...]]:
    found: dict[PeerId, tuple[str, ...]] = {}
    for address in addresses:
        peer = PeerId(address.rpartition("/p2p/")[2])
        found[peer] = (*found.get(peer, ()), address)
    return found


def _good(address: object, peer: object) -> bool:
    if not isinstance(address, str) or len(address) > MOST_CHARACTERS:
        return False
    match = _ADDRESS.fullmatch(address)
    return match is not None and match[2] == peer
