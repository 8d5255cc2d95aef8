"""The frames that wait for one session, in the order in which they arrived."""

from collections import deque
from dataclasses import dataclass

from swarm.ids import PeerId
from swarm.messages import Fork, Open, Relink, Step

__all__ = ["Inbox", "Letter"]


@dataclass(frozen=True, slots=True)
class Letter:
    sender: PeerId
    message: Step | Fork | Relink | Open
    arrived: float  # seconds, of the engine's clock
    size: int  # bytes of the frame


class Inbox:
    """First in, first out. Its owner asks `has_room` before `put`: what does not fit must be answered."""

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self.bytes = 0
        self.tokens = 0  # in the steps that wait
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._letters: deque[Letter] = deque()

    def __len__(self) -> int:
        return len(self._letters)

    def has_room(self, size: int) -> bool:
        return len(self._letters) < self._max_frames and self.bytes + size <= self._max_bytes

    def put(self, letter: Letter) -> None:
        self._letters.append(letter)
        self.bytes += letter.size
        self.tokens += _tokens(letter)

    def take(self) -> Letter:
        letter = self._letters.popleft()
        self.bytes -= letter.size
        self.tokens -= _tokens(letter)
        return letter


def _tokens(letter: Letter) -> int:
    return sum(row.n for row in letter.message.rows) if isinstance(letter.message, Step) else 0
