"""How much one model takes on at once, and for how long it remembers."""

from dataclasses import dataclass, fields

from swarm.errors import UsageError

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is beyond a limit waits, is forgotten, or is refused with Busy; nothing grows without one."""

    lanes: int = 2  # chains that are computed on at once, so that every hop has work
    rows: int = 64  # sequences that one lane computes in a step
    waiting: int = 256  # requests for which no lane has a row yet
    prompt_tokens: int = 1024  # of prompts in a step in which no answer goes on
    beside_tokens: int = 128  # of prompts in a step in which as many answers go on, so that no next token waits long
    ahead_tokens: int = 128  # of an answer for which peers are asked to keep room before it is there
    kept_rows: int = 64  # of complete answers, which one lane's peers remember,
    kept_tokens: int = 32_768  # with so many tokens in all,
    kept_seconds: float = 900.0  # and for so long after they were used last
    idle_seconds: float = 240.0  # without anything to do, after which a lane gives everything back; peers wait 300
    unread: int = 64  # tokens that a reader may be behind before its request waits for it

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) <= 0:
                raise UsageError(f"{each.name} is more than zero, not {getattr(self, each.name)}")
