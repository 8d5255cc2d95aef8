"""Beginnings that rows of different sessions have in common: computed once, and stored once, KV and outbox alike.

A page of a row is named by a key that is chained over all hidden states that came in for the row, up to the page's end.
So whoever finds a page under a key has sent the very bytes that it was computed from, whoever computed it: nobody can
put anything wrong under a key. What is remembered takes no room from anybody: see `peers.pages`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from peers.pages import PagePool
from swarm.ids import Digest, Span

__all__ = ["Prefixes", "RowKeys", "SharedPage", "root_key", "token_digests"]

BYTES = 32  # of a key, and of a token's digest


def root_key(model: Digest, blocks: Span, codec: str) -> bytes:
    """What the keys of all rows begin with that go through the same blocks of the same model."""
    return _digest(f"{model} {blocks.start}:{blocks.end} {codec}".encode())


def token_digests(hidden: Tensor) -> Iterator[bytes]:
    """One for each of `hidden` `[n, width]`, on the CPU, as they came in."""
    return map(_digest, hidden.contiguous().view(torch.uint8).numpy())


class RowKeys:
    """The keys of one row's full pages, and what the keys of its next pages are made of."""

    def __init__(self, root: bytes, page_size: int) -> None:
        self._root = root
        self._page = page_size * BYTES
        self._tokens = bytearray()  # a digest of every token's hidden state, so that a row can be cut anywhere
        self._keys: list[bytes] = []

    def extend(self, digests: Iterable[bytes]) -> None:
        """`digests` of the next tokens."""
        for digest in digests:
            self._tokens += digest
        while len(self._tokens) >= (len(self._keys) + 1) * self._page:
            begin = len(self._keys) * self._page
            before = self._keys[-1] if self._keys else self._root
            self._keys.append(_digest(before + self._tokens[begin : begin + self._page]))

    def fork(self, at: int) -> "RowKeys":
        """Those of a row that begins with the first `at` tokens of this one."""
        fork = RowKeys(self._root, self._page // BYTES)
        fork._tokens = self._tokens[: at * BYTES]
        fork._keys = self._keys[: at * BYTES // self._page]
        return fork

    def pages(self, first: int, stop: int | None = None) -> Sequence[bytes]:
        """The keys of the full pages among `[first, stop)`."""
        return self._keys[first:stop]


@dataclass(frozen=True, slots=True)
class SharedPage:
    """Where one page of a row's beginning is: its keys and values, and what the hop has sent on."""

    kv: int
    outbox: int


class Prefixes:
    """What is remembered; as soon as one half of a page is gone, all of it is."""

    def __init__(self, kv: PagePool, outbox: PagePool) -> None:
        self._kv = kv
        self._outbox = outbox
        self._pages: dict[bytes, SharedPage] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def find(self, keys: Sequence[bytes]) -> list[SharedPage]:
        """The pages under the first of `keys`, up to the first that is not here."""
        found = []
        for key in keys:
            page = self._pages.get(key)
            if page is None:
                break
            found.append(page)
        return found

    def add(self, key: bytes, page: SharedPage) -> None:
        """Remembers full pages that rows hold now; what is known under that key already stays."""
        if key not in self._pages:
            self._pages[key] = page
            self._kv.remember(page.kv, self._forget(key))
            self._outbox.remember(page.outbox, self._forget(key))

    def _forget(self, key: bytes) -> Callable[[int], None]:
        def forgotten(_: int) -> None:
            page = self._pages.pop(key, None)
            if page is not None:
                self._kv.forget(page.kv)
                self._outbox.forget(page.outbox)

        return forgotten


def _digest(data: "bytes | bytearray | memoryview") -> bytes:
    return blake2b(data, digest_size=BYTES).digest()
