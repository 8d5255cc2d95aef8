"""What a chat talks to: a swarm that this process has joined, or a gateway by HTTP. Light: values and a protocol."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from clients.terminal.conversation import Choosing, Message

__all__ = ["Backend", "ChainNow", "Ended", "Happening", "HopNow", "Lost", "Pace", "Pausing", "Text", "Wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whom to talk to: a model, and an adapter (a folder, a hub id, or one that peers host) where it is to have one."""

    model: str
    adapter: str | None = None

    @property
    def name(self) -> str:
        """As gateways call it, too."""
        return self.model if self.adapter is None else f"{self.model}:{Path(self.adapter).resolve().name}"


@dataclass(frozen=True, slots=True)
class Text:
    """More of the answer. What a model wrote is untrusted: it may hold characters that steer a terminal."""

    text: str


@dataclass(frozen=True, slots=True)
class HopNow:
    """`blocks` as in 0:15."""

    name: str
    blocks: str


@dataclass(frozen=True, slots=True)
class ChainNow:
    """The answer comes along these hops from now on. `mended`: in place of a chain that broke."""

    hops: tuple[HopNow, ...]
    seconds: float
    mended: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """A peer failed; another one is looked for."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Pausing:
    """Nobody can go on with the answer now."""

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the last step took: in all, and within each hop, in the order of the chain."""

    seconds: float
    hops: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is whole ("stop") or was cut at the most tokens ("length"). `prompt`: tokens before the answer, of
    which peers still knew `cached`. `tokens`: its own; None where nobody counted."""

    reason: Literal["stop", "length"]
    prompt: int | None = None
    cached: int | None = None
    tokens: int | None = None


Happening = Text | ChainNow | Lost | Pausing | Pace | Ended


class Backend(Protocol):
    """One model at a time. Used by one thread."""

    model: str

    def answer(self, messages: Sequence[Message], choosing: Choosing) -> Generator[Happening, None, None]:
        """The answer as it comes, `Ended` last. Closing it, or an interrupt within it, stops the answer at the peers
        within one step; the next answer may then be asked for. Raises SwarmError."""
        ...

    def close(self) -> None:
        """Let go of everything; safe to repeat."""
        ...
