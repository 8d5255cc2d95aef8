"""What suits a line, of what is known of all lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.options import COMPRESSIONS
from clients.training.compression import Codecs, Compress, Compression, Exchange
from swarm.codecs import body_size
from swarm.ids import PeerId

WIDTH, TOKENS = 576, 128
RAW = Codecs("fp32", "fp32")
FAST, SLOW = PeerId("fast"), PeerId("slow")


def knowing(lines: dict[PeerId, tuple[float, float]], codec: str = "fp32") -> Compression:
    """Of peers whose lines carry so many bytes a second and who compute a micro-batch in so many seconds."""
    compression = Compression(Compress.AUTO, codec, WIDTH)
    size = body_size("fp32", TOKENS, WIDTH)
    for peer, (rate, busy) in lines.items():
        compression.heard(peer, Exchange(size, size, TOKENS, 2 * size / rate + busy, busy))
    return compression


@pytest.mark.parametrize("mode", [Compress.NONE, Compress.SUMS])
def test_without_it_nothing_is_rounded(mode: Compress) -> None:
    assert Compression(mode, "bf16", WIDTH).codecs(SLOW) == Codecs("bf16", "bf16")


def test_nothing_is_left_out_before_anything_is_known() -> None:
    assert Compression(Compress.AUTO, "fp32", WIDTH).codecs(SLOW) == RAW


def test_only_the_slow_line_is_spared() -> None:
    compression = knowing({FAST: (100e6, 0.3), SLOW: (1.25e6, 0.3)})
    assert compression.codecs(FAST) == RAW
    assert compression.codecs(SLOW) == Codecs("int8", "grad8", "grad8")


def test_the_slowest_line_is_spared_most() -> None:
    assert knowing({SLOW: (0.25e6, 0.2)}).codecs(SLOW) == Codecs("int8", "grad4", "grad8")


def test_nothing_is_left_out_where_computing_takes_longer() -> None:
    assert knowing({FAST: (100e6, 5.0), SLOW: (1.25e6, 0.2)}).codecs(SLOW) == RAW


def test_what_is_smaller_already_stays() -> None:
    assert knowing({SLOW: (0.25e6, 0.2)}, "int8").codecs(SLOW).forward == "int8"


def test_small_exchanges_say_nothing_of_a_line() -> None:
    compression = knowing({SLOW: (100e6, 0.2)})
    compression.heard(SLOW, Exchange(500, 500, 1, 1.0, 0.001))
    assert compression.codecs(SLOW) == RAW


@given(st.floats(1e3, 1e9), st.floats(1e3, 1e9), st.floats(1e-3, 10), st.floats(1e-3, 10))
def test_a_slower_line_never_carries_more(one: float, other: float, busy: float, others: float) -> None:
    lines = {FAST: (max(one, other), busy), SLOW: (min(one, other), others)}
    sizes = [body_size(knowing(lines).codecs(peer).backward, 1, WIDTH) for peer in (FAST, SLOW)]
    assert sizes[0] >= sizes[1]


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
def test_asked_for_always_it_rounds_every_line(codec: str) -> None:
    assert Compression(Compress.INT8, codec, WIDTH).codecs(FAST).forward == "int8"


def test_commands_know_the_same_kinds() -> None:
    assert tuple(Compress) == COMPRESSIONS
