"""What is counted and shown of a peer while it serves, in virtual time."""

import asyncio
from contextlib import suppress
from pathlib import Path

from peers.announce import Load
from peers.executor_settings import ExecutorStats
from peers.lifecycle import Served
from peers.link import ExecutorLink, ExecutorLost
from peers.moment import Moment
from peers.ready import Ready, StandingBy
from peers.stats import EngineStats
from peers.stay import Pace
from peers.thanks import ThanksBook, read_thanks
from peers.watch import Watch
from routing.placement import Placement
from swarm.ids import PeerId, Span
from swarm.record import PeerState
from tests.peers.moments import PEER, a_ready
from tests.swarm.records import record_of
from tests.virtual import run_virtual


class Busy(ExecutorLink):
    """Serves 40 tokens a second, and is its own link."""

    streaming = None
    kv_tokens = 1000
    pace = Pace(40.0, 400.0)

    @property
    def link(self) -> ExecutorLink:
        return self

    @property
    def stats(self) -> ExecutorStats:
        done = int(40 * asyncio.get_running_loop().time())
        return ExecutorStats(engine=EngineStats(tokens_done=done, sessions_opened=2), rss=1, pid=1)

    def load(self) -> Load:
        return Load(0, 0)

    async def restart(self) -> None: ...

    async def send(self, sender: PeerId, frame: bytes) -> None: ...

    async def gone(self, peer: PeerId) -> None: ...

    async def receive(self) -> tuple[PeerId, bytes]:
        raise ExecutorLost("it says nothing")

    async def close(self) -> None: ...


class Diary:
    """A view that remembers."""

    def __init__(self) -> None:
        self.began: list[Ready] = []
        self.moments: list[Moment] = []
        self.ended = 0

    def begin(self, ready: Ready) -> None:
        self.began.append(ready)

    def stand_by(self, standing: StandingBy) -> None:
        pass

    def show(self, moment: Moment) -> None:
        self.moments.append(moment)

    def end(self) -> None:
        self.ended += 1


def test_peer_is_shown_about_every_second_and_what_it_gave_is_saved(tmp_path: Path) -> None:
    path, diary = tmp_path / "thanks.json", Diary()

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        watch = Watch(diary, ThanksBook.open(path, clock), clock)
        running = asyncio.create_task(watch.run())
        await asyncio.sleep(5)
        assert diary.moments == []
        watch.begin(a_ready(), Served(Placement(Span(0, 15), "", 0.0, 1.0), (), Busy(), lambda: record_of(PEER)))
        await asyncio.sleep(10.5)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        watch.close()

    run_virtual(main())
    assert len(diary.began) == diary.ended == 1
    assert [round(moment.uptime) for moment in diary.moments[:-1]] == list(range(11))
    last = diary.moments[-1]
    assert (round(last.rate), last.tokens, last.sessions_taken) == (40, 620, 2)
    assert last.state is PeerState.ONLINE
    saved = read_thanks(path)
    assert (saved.tokens, saved.sessions, saved.seconds, saved.runs) == (620, 2, 10.5, 1)


def test_peer_that_moved_is_shown_with_its_new_blocks_and_its_uptime_goes_on(tmp_path: Path) -> None:
    diary = Diary()

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        watch = Watch(diary, ThanksBook.open(tmp_path / "thanks.json", clock), clock)
        running = asyncio.create_task(watch.run())
        for blocks in (Span(0, 15), Span(15, 30)):
            placement = Placement(blocks, "", 0.0, 1.0)
            watch.begin(a_ready(blocks=blocks), Served(placement, (), Busy(), lambda: record_of(PEER)))
            await asyncio.sleep(9.5)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        watch.close()

    run_virtual(main())
    assert [ready.blocks for ready in diary.began] == [Span(0, 15), Span(15, 30)]
    assert round(diary.moments[-1].uptime) == 19
    assert diary.moments[-1].ready.blocks == Span(15, 30)


def test_peer_that_never_served_leaves_no_trace(tmp_path: Path) -> None:
    path, diary = tmp_path / "thanks.json", Diary()

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        Watch(diary, ThanksBook.open(path, clock), clock).close()

    run_virtual(main())
    assert (diary.moments, diary.ended) == ([], 1)
    assert not path.exists()
