"""How often a failed executor is started again, and how soon."""

from collections import deque
from dataclasses import dataclass

__all__ = ["RestartPolicy", "Restarts"]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Fewer than `most` failures within `window` seconds; waits before restarts double from `first` to `longest`."""

    most: int = 5
    window: float = 600.0
    first: float = 0.5
    longest: float = 30.0


class Restarts:
    """Counts failures; times are seconds of any steady clock."""

    def __init__(self, policy: RestartPolicy) -> None:
        self.policy = policy
        self._failures: deque[float] = deque()

    def note(self, now: float) -> float | None:
        """One more failure: seconds to wait before the next start, or None when it is enough."""
        self._failures.append(now)
        while self._failures[0] < now - self.policy.window:
            self._failures.popleft()
        if len(self._failures) >= self.policy.most:
            return None
        return min(self.policy.first * 2.0 ** (len(self._failures) - 1), self.policy.longest)
