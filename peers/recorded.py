"""Steps of rows that decode, recorded once on a GPU and played again: what starts a kernel takes longer there than the
kernel, with few rows.

What is recorded reads and writes the same memory each time. So rows are filled up to a power of two with copies of the
first, and what they see to a power of two of tokens. A recording is used only where it gives what the blocks give.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from peers.batch import PagedBatch
from peers.fused import FusedBlock, Mlp, watched
from peers.kv import KVCache

__all__ = ["Record", "Recordings", "StaticBatch", "on_gpu"]

_log = logging.getLogger(__name__)

# Does some work, which reads and writes the same tensors each time, and gives what does it again.
Record = Callable[[Callable[[], None]], Callable[[], None]]

LEAST_TOKENS = 256  # that a recording is made for
MOST_SEEN = 1 << 16  # tokens of all rows: beyond it, kernels take longer than what starts them
MOST_RECORDINGS = 24
WARM_UPS = 2  # before a recording: libraries choose and load their kernels
TOLERANCE = 4.0  # roundings, times the root of the number of blocks


class Recordings:
    """Of blocks that follow one another. One thread at a time."""

    @classmethod
    def of(cls, blocks: Sequence[FusedBlock], cache: KVCache, first: int, record: Record) -> Self | None:
        """`first`: of the blocks' layers in `cache`. None where what the blocks do depends on what they are given."""
        return cls(blocks, cache, first, record) if all(map(_steady, blocks)) else None

    def __init__(self, blocks: Sequence[FusedBlock], cache: KVCache, first: int, record: Record) -> None:
        self._blocks, self._cache, self._first, self._record = blocks, cache, first, record
        self._kept: OrderedDict[tuple[int, int], _Recording] = OrderedDict()
        self._usable = True
        self._maps = [
            module for block in blocks for module in block.modules() if not any(module.children())
        ]  # to which adapters may attach

    def takes(self, batch: PagedBatch) -> bool:
        """Whether these rows can be computed so: they decode, and nobody else wants to see what happens in between."""
        fits = batch.decoding and batch.rows * batch.longest <= MOST_SEEN
        return self._usable and fits and not watched(self._maps)

    def forward(self, states: Tensor, batch: PagedBatch) -> None:
        """`states` `[rows, hidden]` are changed in place."""
        key = (_power(batch.rows), max(LEAST_TOKENS, _power(batch.longest)))
        if key in self._kept:
            self._kept.move_to_end(key)
            self._kept[key].play(states, batch)
        else:
            self._begin(key, states, batch)

    def _begin(self, key: tuple[int, int], states: Tensor, batch: PagedBatch) -> None:
        given = states.clone()
        self._compute(states, batch)
        played = given.clone()
        try:
            recording = _Recording(self, StaticBatch(self._cache, batch.windows, *key), given, batch, self._record)
            recording.play(played, batch)
        except Exception as error:  # whatever it is, the blocks themselves can be computed
            self._usable = False
            _log.warning("steps are not recorded, since that fails here: %s", error)
            return
        allowed = TOLERANCE * torch.finfo(states.dtype).eps * len(self._blocks) ** 0.5 * states.float().norm()
        if not bool((played.float() - states.float()).norm() <= allowed):
            self._usable = False
            _log.warning("steps are not recorded, since what is played differs from what was recorded")
            return
        self._kept[key] = recording
        if len(self._kept) > MOST_RECORDINGS:
            self._kept.popitem(last=False)

    def _compute(self, states: Tensor, batch: PagedBatch) -> None:
        for batch.layer, block in enumerate(self._blocks, self._first):
            block.forward(states, batch)


class StaticBatch(PagedBatch):
    """So many rows that decode, of so many tokens at most, in tensors that stay where they are."""

    def __init__(self, cache: KVCache, windows: list[int | None], rows: int, longest: int) -> None:
        super().__init__(cache, [], windows)
        self._gather = True
        self.rows = self.tokens = rows
        self.longest = longest
        self.positions, self.slots = (torch.zeros(rows, dtype=torch.int64, device=cache.device) for _ in range(2))
        self._which = torch.arange(rows, device=cache.device)
        self._seen = {
            window: (
                torch.zeros(rows, min(longest, window or longest), dtype=torch.int64, device=cache.device),
                torch.zeros(rows, min(longest, window or longest), dtype=torch.bool, device=cache.device),
            )
            for window in set(windows)
        }

    def begin(self) -> None:
        """Forget what has been found out in a step before."""
        self.known = {("padded", window): (self._which, *seen) for window, seen in self._seen.items()}

    def fill(self, batch: PagedBatch) -> None:
        """With the rows of another; the first stands in for those that are missing."""
        for own, given in ((self.positions, batch.positions), (self.slots, batch.slots)):
            _fill(own, given)
        for window, (places, seen) in self._seen.items():
            _, given_places, given_seen = batch.padded(window)
            columns = given_places.shape[1]
            _fill(places[:, :columns], given_places)
            places[:, columns:] = places[:, :1]  # of the row itself: what others have there may be no number
            _fill(seen[:, :columns], given_seen)
            seen[:, columns:] = False


class _Recording:
    def __init__(self, owner: Recordings, batch: StaticBatch, states: Tensor, like: PagedBatch, record: Record) -> None:
        self._batch = batch
        self._states = states.new_zeros(batch.rows, states.shape[1])
        self._load(states, like)

        def work() -> None:
            batch.begin()
            owner._compute(self._states, batch)

        self._play = record(work)

    def play(self, states: Tensor, batch: PagedBatch) -> None:
        self._load(states, batch)
        self._play()
        states.copy_(self._states[: len(states)])

    def _load(self, states: Tensor, batch: PagedBatch) -> None:
        self._batch.fill(batch)
        _fill(self._states, states)


def on_gpu(device: torch.device) -> Record:
    """As CUDA graphs, which share what memory they need, since only one plays at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], None]) -> Callable[[], None]:
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                work()
        play: Callable[[], None] = graph.replay
        return play

    return record


def _steady(block: FusedBlock) -> bool:
    """Whether it does the same whatever it is given, so that playing it again is all there is to do."""
    heads, turning = block.attention.heads, block.attention.turning
    return heads.rule.plain and isinstance(block.mlp, Mlp) and (turning is None or turning.fixed)


def _fill(own: Tensor, given: Tensor) -> None:
    """The first rows are those that are given, all others are like the first of them."""
    own[: len(given)] = given
    own[len(given) :] = given[:1]


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
