"""What an executor process is told when it starts, and what it says of itself. No torch here."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from peers.limits import EngineLimits
from peers.stats import EngineStats
from routing.perf import Profile
from swarm.ids import Digest, Span

__all__ = ["ExecutorReady", "ExecutorSettings", "ExecutorStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSettings:
    """`model`: a name that `swarm.checkpoint.resolve` finds offline. `kv_tokens`, `outbox_tokens`: None for what memory
    gives. `threads`: None for what torch chooses. `cache`: a folder for profiles and packed blocks, absolute.
    `quantization`: of linear layers' weights, "none" for the `dtype` of everything else."""

    model: str
    blocks: Span
    cache: str
    revision: str | None = None
    dtype: str = "fp32"
    quantization: str = "none"
    device: str = "cpu"
    kv_tokens: int | None = None
    outbox_tokens: int | None = None
    page_size: int = 16
    threads: int | None = None
    limits: EngineLimits = field(default_factory=EngineLimits)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        values: dict[str, Any] = json.loads(text)
        values["blocks"] = Span(**values["blocks"])
        values["limits"] = EngineLimits(**values["limits"])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorReady:
    """What has been loaded, and how fast it is."""

    pid: int
    model: Digest
    blocks: Span
    hidden_size: int
    max_positions: int
    kv_tokens: int
    outbox_tokens: int
    dtype: str
    device: str
    profile: Profile

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        values: dict[str, Any] = json.loads(text)
        values["blocks"] = Span(**values["blocks"])
        values["profile"] = Profile(**values["profile"])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorStats:
    """Sent about every second, and when sessions come or go."""

    engine: EngineStats = field(default_factory=EngineStats)
    rss: int = 0  # bytes of memory that the process uses
    pid: int = 0

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        values: dict[str, Any] = json.loads(text)
        values["engine"] = EngineStats(**values["engine"])
        return cls(**values)
