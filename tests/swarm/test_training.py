"""Frames of fine-tuning that later versions have added to: what is left out means what it meant before."""

from typing import Any

import pytest

from swarm.errors import WireError
from swarm.ids import SessionId
from swarm.training import Backward, MicroBatch
from swarm.wire import decode, encode

ASKED = Backward(SessionId(bytes(16)), MicroBatch(1, (3,)), False, "fp32", b"1234", wanted=False)


def header(**changes: Any) -> dict[str, Any]:
    return {**decode(ASKED.pack()).header, **changes}


def test_a_backward_says_whether_the_gradient_of_inputs_is_wanted() -> None:
    assert not Backward.parse(decode(ASKED.pack())).wanted


def test_where_nothing_is_said_it_is_wanted() -> None:
    earlier = header()
    del earlier["wanted"]
    assert Backward.parse(decode(encode(earlier, b"1234"))).wanted


@pytest.mark.parametrize("said", [0, 1, "no", None, []])
def test_anything_but_true_or_false_is_refused(said: object) -> None:
    with pytest.raises(WireError, match="true or false"):
        Backward.parse(decode(encode(header(wanted=said), b"1234")))
