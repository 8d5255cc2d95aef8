"""An executor process as the lifecycle sees it."""

from typing import Self

from peers.announce import Load
from peers.executor_settings import ExecutorSettings, Streaming
from peers.link import ProcessLink
from peers.stay import Pace

__all__ = ["ProcessExecutor"]


class ProcessExecutor:
    """Made by `start`, ended by `close`."""

    def __init__(self, link: ProcessLink) -> None:
        self.link = link

    @classmethod
    async def start(cls, settings: ExecutorSettings) -> Self:
        """Loads and measures the span. Raises ModelError or UsageError, or ExecutorLost when the process fails."""
        link = ProcessLink(settings)
        await link.start()
        return cls(link)

    @property
    def pace(self) -> Pace:
        ready = self.link.ready
        blocks = len(ready.blocks)
        return Pace(throughput=ready.profile.decode_rate(blocks), prefill=ready.profile.prefill_rate(blocks))

    @property
    def kv_tokens(self) -> int:
        return self.link.ready.kv_tokens

    @property
    def streaming(self) -> Streaming | None:
        return self.link.ready.streaming

    @property
    def adapters(self) -> tuple[tuple[str, str], ...]:
        return self.link.ready.adapters

    def load(self) -> Load:
        stats = self.link.stats
        if not stats.pid:  # it has not spoken yet, so nothing is in use
            return Load(cache_left=self.kv_tokens, queue=0)
        return Load(cache_left=stats.engine.kv_tokens_free, queue=stats.engine.queue_tokens)

    async def restart(self) -> None:
        await self.link.restart()

    async def close(self) -> None:
        await self.link.close()
