"""Adapters that are here to generate with: those that the peer hosts, which stay, and those that clients have sent for
their sessions, each client seeing only its own, within a budget.

What no session uses stays until room is needed, so that a client which opens its next session need not send it again.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping

from peers.limits import EngineLimits
from peers.training.deltas import BlockAdapter
from swarm.errors import Busy, HopError
from swarm.ids import PeerId, SessionId
from swarm.messages import FaultCode
from swarm.training import Adapter, AdapterKey, AdapterKeys, adapter_key

__all__ = ["Owned", "Uploads"]

Owned = tuple[PeerId, AdapterKey]


class Uploads:
    def __init__(self, limits: EngineLimits, hosted: Mapping[AdapterKey, BlockAdapter] | None = None) -> None:
        """`hosted`: by content, outside of the budget for clients."""
        self._limits = limits
        self._hosted = dict(hosted or {})
        self._kept: OrderedDict[Owned, BlockAdapter] = OrderedDict()  # what was wanted longest ago comes first
        self._expected: OrderedDict[SessionId, frozenset[Owned]] = OrderedDict()  # by sessions that are not open yet

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        return sum(adapter.nbytes for adapter in self._kept.values())

    def lacking(self, owner: PeerId, session: SessionId, keys: AdapterKeys) -> tuple[AdapterKey, ...]:
        """Those of `keys` that the client has to send before it asks again; they are expected from now on."""
        wanted = frozenset((owner, key) for _, key in keys if key not in self._hosted)
        for each in wanted & self._kept.keys():
            self._kept.move_to_end(each)
        lacking = tuple(sorted(key for own, key in wanted - self._kept.keys()))
        self.forget(session)
        if lacking:
            self._expected[session] = wanted
            if len(self._expected) > self._limits.max_sessions:
                self._expected.popitem(last=False)
        return lacking

    def expects(self, owner: PeerId, message: Adapter) -> bool:
        return (owner, message.key) in self._expected.get(message.session, ())

    def take(self, owner: PeerId, message: Adapter, used: Collection[Owned]) -> None:
        """Keeps an adapter that is expected; `used` by open sessions are not put aside for it. Raises HopError or
        Busy."""
        if adapter_key(message.tuned, message.body) != message.key:
            raise HopError(FaultCode.BAD_INPUT, "an adapter's key is not the digest of what it says")
        limits, pinned = self._limits, {*used, *self._expected[message.session]}
        own, size = (owner, message.key), len(message.body)
        if own in self._kept:
            return
        if not self._make_room(size, limits.adapter_bytes, [each for each in self._kept if each[0] == owner], pinned):
            text = f"the adapters in use are more than the {limits.adapter_bytes} bytes that a client may keep here"
            raise HopError(FaultCode.REFUSED, f"{text}: use a smaller one, or close sessions with others")
        if not self._make_room(size, limits.total_adapter_bytes, list(self._kept), pinned):
            text = f"other clients' adapters take all {limits.total_adapter_bytes} bytes that this peer has for them"
            raise Busy(text, limits.retry_seconds)
        self._kept[own] = BlockAdapter.read(message.tuned, message.body)

    def get(self, owner: PeerId, key: AdapterKey) -> BlockAdapter:
        return self._hosted[key] if key in self._hosted else self._kept[owner, key]

    def forget(self, session: SessionId) -> None:
        """Nothing more is expected for a session."""
        self._expected.pop(session, None)

    def gone(self, owner: PeerId) -> None:
        for each in [each for each in self._kept if each[0] == owner]:
            del self._kept[each]
        for session in [s for s, wanted in self._expected.items() if any(own == owner for own, _ in wanted)]:
            del self._expected[session]

    def _make_room(self, size: int, budget: int, among: Collection[Owned], pinned: Collection[Owned]) -> bool:
        """Puts aside what is not in use, the oldest first, until `size` bytes more are within `budget`."""
        taken = size + sum(self._kept[each].nbytes for each in among)
        for each in among:
            if taken > budget and each not in pinned:
                taken -= self._kept.pop(each).nbytes
        return taken <= budget
