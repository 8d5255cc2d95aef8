"""The names things have: peers, sessions, rows, models, and spans of blocks."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NewType, Self

from swarm.errors import UsageError

__all__ = ["ADAPTER_NAME", "MAX_ADAPTERS", "Digest", "PeerId", "RowId", "SessionId", "Span", "new_session_id"]

PeerId = NewType("PeerId", str)  # base58 of a libp2p peer id
SessionId = NewType("SessionId", bytes)  # 128 random bits
RowId = NewType("RowId", int)  # unique within a session, never used for two contents
Digest = NewType("Digest", str)  # 64 hex digits: config and weights of one model

ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")  # of one that a peer hosts, from end to end
MAX_ADAPTERS = 8  # that one peer hosts


def new_session_id() -> SessionId:
    return SessionId(secrets.token_bytes(16))


@dataclass(frozen=True, order=True, slots=True)
class Span:
    """A contiguous half-open range of blocks `[start, end)`, never empty."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise UsageError(f"a span is START:END with 0 <= START < END, not {self.start}:{self.end}")

    @classmethod
    def parse(cls, text: str) -> Self:
        start, colon, end = text.partition(":")
        if not (colon and start.isdecimal() and end.isdecimal()):
            raise UsageError(f"'{text}' is no span of blocks: write START:END, for example 0:15")
        return cls(int(start), int(end))

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __contains__(self, other: "int | Span") -> bool:
        if isinstance(other, Span):
            return self.start <= other.start and other.end <= self.end
        return self.start <= other < self.end

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"
