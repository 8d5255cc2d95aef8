"""Beginnings that rows of different sessions have in common: computed once, and stored once, KV and outbox alike.

A page of a row has a key that stands for all tokens up to the page's end. The first hop chains it over the bytes that
the client sends: who finds a page has sent what it was computed from. A later hop makes it of the key that its previous
hop has given the page, and of that hop's identity: bytes would not do, since what is computed anew differs in its last
bits, and so a peer that lies can spoil nothing but what came through itself. What is remembered takes no room from
anybody: see `peers.pages`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from peers.pages import PagePool
from swarm.ids import Digest, PeerId, Span
from swarm.messages import KEY_BYTES, PageKeys
from swarm.training import AdapterKeys

__all__ = ["Prefixes", "RowKeys", "SharedPage", "root_key", "token_digests"]


def root_key(model: Digest, blocks: Span, codec: str, adapters: AdapterKeys = ()) -> bytes:
    """What the keys of all rows begin with that go through the same blocks of the same model with the same adapters."""
    tuned = "".join(f" {block}={key.hex()}" for block, key in adapters)
    return _digest(f"{model} {blocks.start}:{blocks.end} {codec}{tuned}".encode())


def token_digests(hidden: Tensor) -> Iterator[bytes]:
    """One for each of `hidden` `[n, width]`, on the CPU, as they came in."""
    return map(_digest, hidden.contiguous().view(torch.uint8).numpy())


class RowKeys:
    """The keys of one row's full pages, as far as they are known, and what the keys of its next pages are made of."""

    def __init__(self, root: bytes, page_size: int) -> None:
        self._root = root
        self._page_size = page_size
        self._pages: list[bytes] = []  # digests of every token of full pages, so that a row can be cut anywhere
        self._rest = bytearray()  # those of the page that is not full
        self._keys: dict[int, bytes] = {}

    def extend(self, at: int, digests: Iterable[bytes]) -> None:
        """`digests` of tokens from `at` on that the client sent; they are of no use where others are missing before."""
        if len(self._pages) * self._page_size + len(self._rest) // KEY_BYTES != at:
            return
        for digest in digests:
            self._rest += digest
            if len(self._rest) == self._page_size * KEY_BYTES:
                page = len(self._pages)
                self._pages.append(bytes(self._rest))
                self._rest.clear()
                self._keys[page] = _digest((self._keys[page - 1] if page else self._root) + self._pages[page])

    def name(self, sender: PeerId, named: PageKeys, at: int, n: int) -> None:
        """What the hop before calls pages of this row; those count that end among the tokens `[at, at + n)`."""
        coming = range(at // self._page_size, (at + n) // self._page_size)
        for page, key in enumerate(named.keys, named.first):
            if page in coming:
                self._keys[page] = _digest(self._root + sender.encode() + key)

    def fork(self, at: int) -> "RowKeys":
        """Those of a row that begins with the first `at` tokens of this one. Full pages are shared: a hundred forks of
        a long row take no more memory than the row."""
        fork = RowKeys(self._root, self._page_size)
        full, more = divmod(at, self._page_size)
        fork._pages = self._pages[:full]
        cut = self._pages[full] if full < len(self._pages) else self._rest
        fork._rest = bytearray(cut[: more * KEY_BYTES] if full <= len(self._pages) else cut)
        fork._keys = {page: key for page, key in self._keys.items() if page < full}
        return fork

    def pages(self, first: int, stop: int | None = None) -> Sequence[bytes]:
        """The keys of the pages among `[first, stop)`, up to the first that is not known."""
        keys = []
        while first in self._keys and first != stop:
            keys.append(self._keys[first])
            first += 1
        return keys


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
    return blake2b(data, digest_size=KEY_BYTES).digest()
