"""How fast a span computes on a device, as measured when it was loaded. No torch here."""

from dataclasses import dataclass

__all__ = ["SpanProfile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanProfile:
    """Everything through the whole span, in tokens per second."""

    decode_rows: float  # decoding one row
    decode_rows_batched: float  # decoding `batch` rows at once, all of them together
    batch: int
    prefill: float  # of a prompt
