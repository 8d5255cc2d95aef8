"""Whether this machine's clock is right, by what others say of theirs."""

from collections.abc import Sequence
from statistics import median

__all__ = ["CLOCK_LIMIT", "clock_trouble"]

CLOCK_LIMIT = 3.0  # seconds by which clocks may differ; hivemind lets nobody join beyond it


def clock_trouble(offsets: Sequence[float]) -> str | None:
    """A sentence when the clocks of others are too far from ours; `offsets`: seconds by which each is ahead of ours.
    One liar among three changes nothing."""
    if not offsets or abs(off := median(offsets)) <= CLOCK_LIMIT:
        return None
    way = "behind" if off > 0 else "ahead of"
    others = "the one other peer that was asked" if len(offsets) == 1 else f"{len(offsets)} other peers"
    return (
        f"this machine's clock is {_duration(abs(off))} {way} that of {others}, so that what they announce looks "
        f"{'as if it came from the future' if off > 0 else 'long expired'}, and they refuse what is announced from "
        "here; set it right, for example with NTP: timedatectl set-ntp true"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
