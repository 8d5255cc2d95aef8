"""A streamer that keeps what it is given."""

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

__all__ = ["Seen"]


class Seen(BaseStreamer):
    """All tokens, and -1 for the end."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.tokens.append(-1)
