"""How long a pass takes by how many tokens it has, as seen so far: a straight line, the latest passes counting most."""

__all__ = ["Pace"]

FORGET = 0.98  # of what is known, with each pass
GUESS = 0.25  # of a pass, what a token more costs while that is not known


class Pace:
    def __init__(self) -> None:
        self._count = 0.0
        self._tokens = 0.0
        self._seconds = 0.0
        self._squares = 0.0
        self._products = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """A pass of `tokens` took `seconds`."""
        self._count = FORGET * self._count + 1
        self._tokens = FORGET * self._tokens + tokens
        self._seconds = FORGET * self._seconds + seconds
        self._squares = FORGET * self._squares + tokens * tokens
        self._products = FORGET * self._products + tokens * seconds

    @property
    def each(self) -> float:
        """Seconds for one token more; 0 before the first pass."""
        if not self._count:
            return 0.0
        mean, seconds = self._tokens / self._count, self._seconds / self._count
        spread = self._squares / self._count - mean * mean
        least = seconds / mean / 64  # noise may not make tokens free
        if spread < 0.1:
            return max(least, GUESS * seconds / mean)
        return max(least, (self._products / self._count - mean * seconds) / spread)

    def of(self, tokens: int) -> float:
        """Seconds for a pass of `tokens`; 0 before the first pass."""
        if not self._count:
            return 0.0
        mean, seconds = self._tokens / self._count, self._seconds / self._count
        return max(tokens * self.each, seconds + (tokens - mean) * self.each)
