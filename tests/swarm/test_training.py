"""Frames of fine-tuning that later versions have added to: what is left out means what it meant before."""

from dataclasses import replace
from typing import Any

import pytest

from swarm.errors import WireError
from swarm.ids import SessionId
from swarm.training import Backward, Collect, Forward, Gradients, MicroBatch, Passed
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


def test_frames_of_who_compresses_nothing_are_as_they_were() -> None:
    forward = Forward(ASKED.session, ASKED.batch, True, "fp32", b"1234")
    common = {"kind", "session", "codec", "id", "lengths", "adapters", "seed"}
    assert decode(forward.pack()).header.keys() == common | {"keep"}
    assert header().keys() == common | {"given", "wanted"}


@pytest.mark.parametrize("asked", [ASKED, replace(ASKED, codec="grad4", inputs="int8", answer="grad8", into=7)])
def test_a_backward_survives_the_way(asked: Backward) -> None:
    assert Backward.parse(decode(asked.pack())) == asked


def test_a_forward_pass_travels_in_no_codec_of_gradients() -> None:
    forward = Forward(ASKED.session, ASKED.batch, True, "grad8", b"1234")
    passed = Passed(ASKED.session, 1, "grad8", b"1234")
    for frame in (forward, passed, replace(forward, codec="fp32", answer="grad8"), replace(ASKED, inputs="grad8")):
        with pytest.raises(WireError, match="unknown codec"):
            type(frame).parse(decode(frame.pack()))
    gradients = Gradients(ASKED.session, 1, None, False, "grad8", b"1234")
    assert Gradients.parse(decode(gradients.pack())) == gradients


@pytest.mark.parametrize("said", [{"count": 0}, {"count": "1"}, {"codec": "fp32"}, {"codec": []}, {"id": -1}])
def test_who_collects_names_a_sum_and_how_many_are_in_it(said: dict[str, Any]) -> None:
    asked = Collect(ASKED.session, 7, 3, "grad8")
    assert Collect.parse(decode(asked.pack())) == asked
    with pytest.raises(WireError):
        Collect.parse(decode(encode({**decode(asked.pack()).header, **said})))
