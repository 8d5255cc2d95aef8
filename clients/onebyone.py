"""Tokens that come several at once, handed on as if they had come one by one: to a streamer, to stopping criteria."""

from typing import Any

from torch import Tensor
from transformers import Cache, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

__all__ = ["OneByOne"]


class OneByOne(StoppingCriteriaList):
    """Stands before the criteria of a `generate` with one row, and knows where the first of them said stop.

    The streamer gets each token before the criteria see it, as in a plain `generate`, and none behind the end.
    """

    def __init__(self, criteria: StoppingCriteriaList, streamer: BaseStreamer | None, begin: int) -> None:
        """`begin`: how many tokens were there before the first new one."""
        super().__init__(criteria)
        self.end: int | None = None
        self._streamer = streamer
        self._begin = self._seen = begin

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Which rows, [1], are finished with the tokens that are new since the last call."""
        while True:
            self._seen += 1
            if self._streamer is not None:
                self._streamer.put(input_ids[:, self._seen - 1].cpu())  # type: ignore[no-untyped-call]
            so_far = scores[: self._seen - self._begin] if scores else scores
            finished: Tensor = super().__call__(input_ids[:, : self._seen], so_far, **options)
            if bool(finished.all()):
                self.end = self._seen
                return finished
            if self._seen == input_ids.shape[1]:
                return finished

    def cut(self, result: Any, cache: Cache) -> Any:
        """What `generate` is about to return, and its `cache`, without what lies behind the end."""
        ids = result if isinstance(result, Tensor) else result.sequences
        if self.end is None or self.end == ids.shape[1]:
            return result
        cache.crop(self.end - ids.shape[1])
        if isinstance(result, Tensor):
            return ids[:, : self.end]
        result.sequences = ids[:, : self.end]
        for name in ("scores", "logits", "hidden_states"):
            if name in result:
                result[name] = result[name][: self.end - self._begin]
        return result
