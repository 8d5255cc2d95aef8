"""What an executor process is told when it starts, and what it says of itself. No torch here."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from peers.limits import EngineLimits
from peers.memory_budget import readable
from peers.stats import DeviceUse, EngineStats
from peers.training.limits import TrainingLimits
from routing.perf import Profile
from swarm.ids import Digest, Span

__all__ = ["ExecutorReady", "ExecutorSettings", "ExecutorStats", "Streaming"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSettings:
    """`model`: a name that `swarm.checkpoint.resolve` finds offline. `max_memory`: bytes of the device's
    memory for weights, keys, values and outbox; what of the blocks is beyond it is read anew in each step on the CPU,
    and refused elsewhere; None for what is free, and nothing beyond.
    `kv_tokens`, `outbox_tokens`: None for what memory gives. `threads`: None for what torch chooses. `cache`: a folder
    for profiles and packed blocks, absolute. `quantization`: of linear layers' weights, "none" for the `dtype` of
    everything else. `adapters` to host: names, and the folders that hold them, absolute."""

    model: str
    blocks: Span
    cache: str
    revision: str | None = None
    dtype: str = "fp32"
    quantization: str = "none"
    device: str = "cpu"
    max_memory: int | None = None
    kv_tokens: int | None = None
    outbox_tokens: int | None = None
    page_size: int = 16
    threads: int | None = None
    adapters: tuple[tuple[str, str], ...] = ()
    limits: EngineLimits = field(default_factory=EngineLimits)
    training: TrainingLimits = field(default_factory=TrainingLimits)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        values: dict[str, Any] = json.loads(text)
        values["blocks"] = Span(**values["blocks"])
        values["adapters"] = _pairs(values["adapters"])
        values["limits"] = EngineLimits(**values["limits"])
        values["training"] = TrainingLimits(**values["training"])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """What each step brings anew: so many `blocks` of the span, `size` bytes, from the disk or from main memory to a
    GPU. `rate`: bytes per second from that `source`; None where it can't be measured."""

    blocks: int
    size: int
    rate: float | None
    source: str = "disk"

    @property
    def seconds(self) -> float | None:
        """That a step takes at least; from disk, when the system keeps none of the blocks in memory that is free."""
        return self.size / self.rate if self.rate else None

    def __str__(self) -> str:
        source = "memory that is free or else from disk" if self.source == "disk" else self.source
        text = f"{self.blocks} blocks, {readable(self.size)}, are read anew in each step, from {source}"
        if self.seconds is None or self.rate is None:
            return text
        return f"{text}: {readable(self.rate)}/s, so {1 / self.seconds:.2g} steps/s at most"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorReady:
    """What has been loaded, and how fast it is. `streaming`: None where all blocks stay in memory. `adapters` that are
    hosted: names and digests."""

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
    streaming: Streaming | None = None
    adapters: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        values: dict[str, Any] = json.loads(text)
        values["blocks"] = Span(**values["blocks"])
        values["adapters"] = _pairs(values["adapters"])
        values["profile"] = Profile(**values["profile"])
        values["streaming"] = values["streaming"] and Streaming(**values["streaming"])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorStats:
    """Sent about every second, and when sessions come or go."""

    engine: EngineStats = field(default_factory=EngineStats)
    rss: int = 0  # bytes of memory that the process uses
    pid: int = 0
    device: DeviceUse | None = None  # where it has memory of its own

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        values: dict[str, Any] = json.loads(text)
        values["engine"] = EngineStats(**values["engine"])
        values["device"] = values["device"] and DeviceUse(**values["device"])
        return cls(**values)


def _pairs(values: list[list[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in values)
