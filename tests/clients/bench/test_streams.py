"""Streamed answers are read as a gateway sends them."""

import pytest

from clients.bench.answers import Answer
from clients.bench.gateway import GatewayTurn
from clients.bench.gateway_report import GatewayReport
from clients.bench.streams import Stream, stream_rate, streams
from swarm.errors import NetworkError
from tests.clients.gateway.conftest import completer, live, played, tokenizer
from tests.clients.gateway.live import LiveGateway

__all__ = ["completer", "live", "played", "tokenizer"]

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def test_text_tokens_and_times_are_those_of_the_stream(live: LiveGateway) -> None:
    one, two = streams(live.base_url, "/chat/completions", [CHAT, CHAT | {"max_tokens": 5}])
    assert (one.text, two.text) == ("Hello there.", "Hello")
    assert two.tokens == 5
    assert one.begun < one.at[0] <= one.at[-1]
    assert one.first > 0


def test_refusal_is_told_in_words(live: LiveGateway) -> None:
    with pytest.raises(NetworkError, match="not served here"):
        streams(live.base_url, "/chat/completions", [CHAT | {"model": "large"}])


def test_rate_counts_tokens_after_the_first() -> None:
    answers = [Stream(0.0, (1.0, 1.5, 2.0), "abc", 5), Stream(0.5, (1.5, 3.0), "ab", 3)]
    assert stream_rate(answers) == pytest.approx(6 / 2.0)


def test_ratios_are_taken_round_by_round() -> None:
    answer = Answer(0.0, (1.0, 2.0, 3.0), (1, 2, 3))
    halves = [Stream(0.0, (1.0, 3.0, 5.0), "abc", 3)]
    turns = [GatewayTurn([answer], halves, 1, (0.5, 0.25, 0.5)), GatewayTurn([answer], halves, 1, (0.5, 0.5, 0.5))]
    report = GatewayReport.of(turns, most=10.0)
    assert report.ratio.median == pytest.approx(0.5)
    assert (report.late.low, report.late.high) == (1.0, 2.0)
    assert report.streams_waits.between.median == 2.0
    assert (report.same, report.rounds) == (2, 2)
