"""What an engine tells of itself. No torch here: the network process reads these too."""

from dataclasses import dataclass

__all__ = ["DeviceUse", "EngineStats"]


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Memory in bytes, of everybody who uses the device; °C where known."""

    free: int
    total: int
    temperature: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters count since the engine began."""

    sessions: int = 0
    sessions_opened: int = 0
    training_sessions: int = 0  # not among `sessions`
    rows: int = 0
    queue_tokens: int = 0  # wait to be computed
    depth_tokens: int = 0  # waiting or computed, on average over the last seconds
    queue_bytes: int = 0  # of the frames that wait
    page_tokens: int = 1  # that one page of the KV cache holds
    kv_tokens: int = 0  # the KV cache holds
    kv_tokens_free: int = 0  # of them neither used nor promised to a session
    outbox_tokens_free: int = 0
    tokens_done: int = 0
    tokens_shared: int = 0  # that need not be computed, since another row has begun alike
    tokens_trained: int = 0  # of micro-batches, once for each way through the span
    batches: int = 0  # passes through the span
    rows_done: int = 0  # rows in all of them; one row counts in each pass that it takes part in
    busy_seconds: float = 0.0  # that they took
    outboxes_dropped: int = 0  # under memory pressure
    ignored: int = 0  # frames from peers that had no say in the session
    malformed: int = 0  # frames that the protocol does not allow
    faults: int = 0  # sent
    busy: int = 0  # sent
