"""Records that outlive their peers bring nobody back."""

from fault.ghosts import REMEMBERED, Ghosts
from swarm.ids import PeerId
from swarm.record import PeerRecord, PeerState
from tests.routing.records import record


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def said(at: float, peer: str = "alice", state: PeerState = PeerState.ONLINE) -> PeerRecord:
    return record(peer, 0, 4, num_blocks=4, issued=at, expires=at + 60, state=state)


def test_a_record_from_before_the_failure_does_not_bring_a_peer_back() -> None:
    clock = Clock()
    ghosts = Ghosts(clock)
    ghosts.fail(PeerId("alice"))
    clock.now += 50
    assert ghosts.among([said(999.0), said(990.0, "bob")]) == {"alice"}


def test_one_from_after_it_does() -> None:
    ghosts = Ghosts(Clock())
    ghosts.fail(PeerId("alice"))
    assert ghosts.among([said(1000.5)]) == frozenset()


def test_who_was_heard_of_is_no_ghost() -> None:
    ghosts = Ghosts(Clock())
    ghosts.fail(PeerId("alice"))
    ghosts.alive(PeerId("alice"))
    assert ghosts.among([said(999.0)]) == frozenset()


def test_a_failure_is_forgotten_when_every_record_from_before_it_has_expired() -> None:
    clock = Clock()
    ghosts = Ghosts(clock)
    ghosts.fail(PeerId("alice"))
    clock.now += REMEMBERED
    assert ghosts.among([said(999.0)]) == frozenset()


def test_a_clock_that_is_set_back_does_not_put_a_failure_into_the_future() -> None:
    clock = Clock()
    ghosts = Ghosts(clock)
    ghosts.fail(PeerId("alice"))
    clock.now -= 500
    assert ghosts.among([said(490.0)]) == {"alice"}
    assert ghosts.among([said(501.0)]) == frozenset()


def test_a_goodbye_stands_when_an_older_record_is_read_after_it() -> None:
    ghosts = Ghosts(Clock())
    online, goodbye = said(990.0), said(995.0, state=PeerState.OFFLINE)
    assert ghosts.last_words([online]) == [online]
    assert ghosts.last_words([goodbye]) == [goodbye]
    assert ghosts.last_words([online]) == []
    again = said(999.0)
    assert ghosts.last_words([again]) == [again]


def test_a_peer_that_set_its_clock_back_is_believed_when_its_last_word_has_expired() -> None:
    clock = Clock()
    ghosts = Ghosts(clock)
    ghosts.last_words([said(1004.0)])
    assert ghosts.last_words([said(1000.0)]) == []
    clock.now += 64
    assert ghosts.last_words([said(1060.0)])
