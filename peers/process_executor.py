"""An executor process as the lifecycle sees it."""

import logging
from typing import Self

from peers.announce import Load
from peers.executor_settings import ExecutorSettings, Streaming
from peers.forked import Forked
from peers.link import ExecutorLost, ProcessLink
from peers.stay import Pace

__all__ = ["ProcessExecutor", "WarmExecutors"]

_log = logging.getLogger(__name__)


class ProcessExecutor:
    """Made by `start`, ended by `close`."""

    def __init__(self, link: ProcessLink) -> None:
        self.link = link

    @classmethod
    async def start(cls, settings: ExecutorSettings) -> Self:
        """Loads and measures the span. Raises ModelError or UsageError, or ExecutorLost when the process fails."""
        return await cls.over(ProcessLink(settings))

    @classmethod
    async def over(cls, link: ProcessLink) -> Self:
        """As `start`; `link` may have been warmed up."""
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
        return Load(cache_left=stats.engine.kv_tokens_free, queue=stats.engine.depth_tokens)

    async def restart(self) -> None:
        await self.link.restart()

    async def close(self) -> None:
        await self.link.close()


class WarmExecutors:
    """Starts executors, one of them ahead of time: importing what computes takes longer than mapping weights that are
    on the disk. What waits takes some 300 MB of memory and nothing of the device; the first that is started may have
    been `forked`. Ended by `close`."""

    def __init__(self, forked: Forked | None = None) -> None:
        self._forked = forked
        self._waiting: ProcessLink | None = None

    async def warm_up(self, settings: ExecutorSettings) -> None:
        """Have a process for these settings wait. One that can't be started is only logged."""
        if self._waiting is not None:
            self._waiting.settings = settings
            return
        link = self._new(settings)
        try:
            await link.warm_up()
        except OSError as error:
            _log.warning("no device process can be started ahead of time: %s", error)
        else:
            self._waiting = link

    async def start(self, settings: ExecutorSettings) -> ProcessExecutor:
        """As `ProcessExecutor.start`, in the process that waits where it is for these settings."""
        if self._waiting is None or self._waiting.settings != settings:
            return await ProcessExecutor.over(self._new(settings))
        link, self._waiting = self._waiting, None
        try:
            return await ProcessExecutor.over(link)
        except ExecutorLost as lost:
            _log.info("the device process that waited can't be used, starting another: %s", lost)
            return await ProcessExecutor.start(settings)

    async def close(self) -> None:
        link, self._waiting = self._waiting, None
        if link is not None:
            await link.close()

    def _new(self, settings: ExecutorSettings) -> ProcessLink:
        forked, self._forked = self._forked, None
        return ProcessLink(settings, forked=forked)
