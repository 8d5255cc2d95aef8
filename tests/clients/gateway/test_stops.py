"""Stop strings in an answer that comes in pieces."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from clients.gateway.stops import Stops

LETTERS = st.text("abc", max_size=30)
STRINGS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def cut(text: str, strings: list[str]) -> str:
    """Up to the stop string that is complete first."""
    for end in range(len(text) + 1):
        found = [end - len(stop) for stop in strings if text[:end].endswith(stop)]
        if found:
            return text[: min(found)]
    return text


@given(LETTERS, STRINGS, st.lists(st.integers(0, 30)))
def test_an_answer_is_cut_at_the_first_stop_string_however_it_is_divided(
    text: str, strings: list[str], cuts: list[int]
) -> None:
    stops, shown = Stops(strings), ""
    bounds = sorted({0, len(text), *(at for at in cuts if at < len(text))})
    for begin, end in pairwise(bounds):
        shown += stops.push(text[begin:end])
        if stops.found is not None:
            break
    else:
        shown += stops.end()
    assert shown == cut(text, strings)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    stops = Stops(["\nUser:"])
    assert stops.push("one\n") == "one"
    assert stops.push("two\nUs") == "\ntwo"
    assert stops.push("ed") == "\nUsed"
    assert stops.push("\nUser: x") == ""
    assert stops.found == "\nUser:"
