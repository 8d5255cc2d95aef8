"""When a peer pauses by itself, and when it goes on."""

import pytest

from peers.pausing import Condition, Machine, keep_pausing, read_machine
from swarm.errors import UsageError
from tests.virtual import run_virtual

QUIET, BUSY, HALF = Machine(5.0, False), Machine(95.0, False), Machine(50.0, False)
UNPLUGGED = Machine(5.0, True)


class Peer:
    def __init__(self) -> None:
        self.said: list[str] = []
        self._why: set[str] = set()

    def pause(self, reason: str) -> None:
        if reason not in self._why:
            self._why.add(reason)
            self.said.append(f"pause {reason}")

    def resume(self, reason: str) -> None:
        if reason in self._why:
            self._why.remove(reason)
            self.said.append(f"resume {reason}")


class Done(Exception):
    """The machine is looked at no more."""


def told(conditions: list[str], machines: list[Machine]) -> list[str]:
    peer, looks = Peer(), iter(machines)

    def read() -> Machine:
        machine = next(looks, None)
        if machine is None:
            raise Done
        return machine

    with pytest.raises(Done):
        run_virtual(keep_pausing(peer, [Condition.parse(text) for text in conditions], read))
    return peer.said


def test_it_pauses_at_once_and_goes_on_when_it_has_been_quiet_for_a_while() -> None:
    assert told(["cpu>60"], [QUIET, BUSY]) == ["pause cpu>60"]
    assert told(["cpu>60"], [BUSY, *[QUIET] * 5]) == ["pause cpu>60"]
    assert told(["cpu>60"], [BUSY, *[QUIET] * 6]) == ["pause cpu>60", "resume cpu>60"]
    assert told(["cpu>60"], [BUSY, *[QUIET] * 5, BUSY, *[QUIET] * 5]) == ["pause cpu>60"]


def test_between_the_two_thresholds_it_stays_as_it_is() -> None:
    assert told(["cpu>60"], [HALF] * 20) == []
    assert told(["cpu>60"], [BUSY, *[HALF] * 20]) == ["pause cpu>60"]


def test_each_reason_is_one_of_its_own() -> None:
    said = told(["battery", "cpu>60"], [UNPLUGGED, BUSY, *[QUIET] * 6])
    assert said == ["pause battery", "pause cpu>60", "resume battery", "resume cpu>60"]


@pytest.mark.parametrize("text", ["", "cpu", "cpu>5", "cpu>100", "cpu>x", "gpu>50", "Battery?"])
def test_what_is_no_reason_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--pause-when is battery, or cpu>N"):
        Condition.parse(text)


def test_this_machine_can_be_read() -> None:
    read = read_machine()
    assert 0 <= read().others <= 100
