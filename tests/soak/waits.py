"""How long readers waited, as a soak says it."""

import math
import statistics
from collections.abc import Sequence

__all__ = ["said"]


def said(seconds: Sequence[float]) -> str:
    """Of one wait or more, one for each kill."""
    ordered = sorted(seconds)
    last = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return (
        f"{len(ordered)} kills: median {statistics.median(ordered):.3f} s, p99 {last:.3f} s, {ordered[0]:.3f} to "
        f"{ordered[-1]:.3f}"
    )
