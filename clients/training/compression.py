"""How much of what travels is left out, so that slow lines hold nobody up."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from swarm.codecs import body_size
from swarm.errors import UsageError
from swarm.ids import PeerId

__all__ = ["Codecs", "Compress", "Compression", "Exchange"]

LEAST_BYTES = 32 << 10  # of an exchange that says something of a line: of less, delays tell more
WEIGHT = 0.3  # of a new measurement
EACH_WAY = 2  # hidden states of a token that a line carries: in and the gradient back, or out and its gradient
HIDDEN = (
    0.5  # of the slowest hop's computing, the part behind which others' transfers are hidden: chains fill and drain
)
FORWARD = ("int8",)  # what may take the place of the connection's codec, the most exact first
BACKWARD = ("grad8", "grad4")


class Compress(StrEnum):
    """`SUMS`: hops add up gradients of adapters over a step's micro-batches and send them once; nothing is rounded. The
    others do that too. `INT8`: a little over a byte for each number, on all lines. `AUTO`: as few bytes as each line
    needs, and no fewer."""

    NONE = "none"
    SUMS = "sums"
    INT8 = "int8"
    AUTO = "auto"

    @classmethod
    def of(cls, name: str) -> Self:
        """Raises UsageError."""
        try:
            return cls(name)
        except ValueError:
            raise UsageError(f"compress is one of {', '.join(cls)}, not '{name}'") from None


@dataclass(frozen=True, slots=True)
class Codecs:
    """Of what a hop is sent and sends. `sums`: of gradients of adapters; None for their own dtypes."""

    forward: str
    backward: str
    sums: str | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A micro-batch that was sent to a hop whose line was idle, and answered: `seconds` in all, of which the hop let it
    wait and computed for `busy`."""

    sent: int  # bytes
    heard: int
    tokens: int
    seconds: float
    busy: float


@dataclass(slots=True)
class _Pace:
    """Of one peer, smoothed; 0 for what is not known yet."""

    byte_seconds: float = 0.0  # of its line, one way
    token_seconds: float = 0.0  # of computing, forward and back taken together


@dataclass
class Compression:
    """Of one client. `codec`: the connection's, without compression."""

    mode: Compress
    codec: str
    width: int
    paces: dict[PeerId, _Pace] = field(default_factory=dict)

    @property
    def sums(self) -> bool:
        """Whether hops add up gradients of adapters."""
        return self.mode is not Compress.NONE

    def heard(self, peer: PeerId, exchange: Exchange) -> None:
        """A line is taken to be as fast one way as the other."""
        pace = self.paces.setdefault(peer, _Pace())
        pace.token_seconds = _smoothed(pace.token_seconds, exchange.busy / exchange.tokens)
        moved = exchange.sent + exchange.heard
        if moved >= LEAST_BYTES:
            pace.byte_seconds = _smoothed(pace.byte_seconds, max(0.0, exchange.seconds - exchange.busy) / moved)

    def codecs(self, peer: PeerId) -> Codecs:
        """What suits the line to `peer`: the most exact codecs with which a token takes no longer on it than half of
        what computing it takes at the slowest hop, so that no more is lost than speeds anything up (after AdaTopK in
        FusionLLM, which leaves out most where a line is slowest)."""
        if self.mode in (Compress.NONE, Compress.SUMS):
            return Codecs(self.codec, self.codec)
        if self.mode is Compress.INT8:
            return Codecs(self._least(FORWARD[0]), self._least(BACKWARD[0]), BACKWARD[0])
        pace = self.paces.get(peer, _Pace())
        longest = max((each.token_seconds for each in self.paces.values()), default=0.0)
        backward = self._choose(BACKWARD, pace.byte_seconds, longest)
        narrow = pace.byte_seconds > 0.0 and backward != self.codec
        forward = self._choose(FORWARD, pace.byte_seconds, longest)
        return Codecs(forward, backward, BACKWARD[0] if narrow else None)

    def _choose(self, ladder: tuple[str, ...], byte_seconds: float, longest: float) -> str:
        for codec in (self.codec, *map(self._least, ladder)):
            if EACH_WAY * byte_seconds * body_size(codec, 1, self.width) <= HIDDEN * longest:
                return codec
        return self._least(ladder[-1])

    def _least(self, codec: str) -> str:
        """`codec`, where that is smaller than the connection's own."""
        return min((self.codec, codec), key=lambda name: body_size(name, 1, self.width))


def _smoothed(known: float, new: float) -> float:
    return new if known == 0.0 else (1 - WEIGHT) * known + WEIGHT * new
