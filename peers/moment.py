"""What a serving peer is and does at one moment: what its volunteer sees, and what programs read of it."""

from dataclasses import dataclass
from typing import Any

from peers.ready import Ready
from peers.stats import DeviceUse, EngineStats
from peers.thanks import Thanks
from peers.vitals import Vitals
from swarm.record import PeerState

__all__ = ["Moment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """`tokens`, `sessions_taken`: in this run. `rate`: tokens per second, now; `rates`: of the last minute, oldest
    first. `batch`: rows in a batch, None while nothing is computed. `busy`: share of time that batches take."""

    ready: Ready
    state: PeerState
    addresses: tuple[str, ...]
    uptime: float  # seconds
    engine: EngineStats
    executor_bytes: int
    device: DeviceUse | None
    vitals: Vitals
    tokens: int
    sessions_taken: int
    thanks: Thanks
    rate: float
    rates: tuple[float, ...]
    batch: float | None
    busy: float

    @property
    def kv_used(self) -> int:
        """Tokens of the KV cache that are used or promised."""
        return self.engine.kv_tokens - self.engine.kv_tokens_free

    def event(self) -> dict[str, Any]:
        """The fields of the JSON line `{"event": "stats", …}`."""
        device = self.device
        temperature = self.vitals.temperature if device is None else device.temperature
        return {
            "state": self.state.value,
            "uptime": round(self.uptime, 1),
            "sessions": self.engine.sessions,
            "training_sessions": self.engine.training_sessions,
            "sessions_taken": self.sessions_taken,
            "rows": self.engine.rows,
            "tokens": self.tokens,
            "tokens_in_all": self.thanks.tokens,
            "tokens_per_second": round(self.rate, 2),
            "rows_per_batch": None if self.batch is None else round(self.batch, 2),
            "busy": round(self.busy, 3),
            "queue_tokens": self.engine.queue_tokens,
            "kv_tokens": self.engine.kv_tokens,
            "kv_tokens_used": self.kv_used,
            "memory": {"executor": self.executor_bytes, "network": self.vitals.own, "free": self.vitals.free},
            "device_memory": None if device is None else {"free": device.free, "total": device.total},
            "temperature": temperature,
        }
