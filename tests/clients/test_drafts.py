"""Guesses from what a sequence repeats."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clients.drafts import LONGEST, Draft, Ngrams

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def draft(drafter: Ngrams, tokens: list[int], length: int = 4) -> Draft | None:
    return drafter.draft(torch.tensor([tokens]), lambda kind: length)


def guesses(found: Draft | None) -> list[int]:
    assert found is not None
    tokens: Tensor = found.tokens
    return list(tokens.tolist())


def test_what_followed_last_time_is_guessed() -> None:
    found = draft(Ngrams(), [1, 2, 3, 4, 5, 6, 7, 1, 2, 3])
    assert guesses(found)[:5] == [4, 5, 6, 7, 1]
    assert found is not None
    assert found.sent == 4


def test_the_longest_agreement_decides_and_then_the_latest() -> None:
    assert guesses(draft(Ngrams(), [1, 2, 9, 5, 2, 8, 6, 1, 2]))[0] == 9
    assert guesses(draft(Ngrams(), [1, 2, 9, 1, 2, 8, 6, 1, 2]))[0] == 8


def test_a_repetition_is_guessed_to_go_on() -> None:
    assert guesses(draft(Ngrams(), [7, 1, 2, 3, 1, 2, 3])) == ([1, 2, 3] * LONGEST)[:LONGEST]


def test_nothing_comes_to_mind_in_a_text_without_repetition() -> None:
    assert draft(Ngrams(), [1, 2, 3, 4]) is None


def test_longer_agreement_is_another_kind() -> None:
    kinds = {getattr(draft(Ngrams(), [*range(20), 30, *range(20 - n, 20)]), "kind", None) for n in (1, 2, 4, 8, 16)}
    assert len(kinds) == 5


@given(TEXTS, st.data())
def test_a_text_that_grows_or_goes_back_is_drafted_as_if_it_were_new(text: list[int], data: st.DataObject) -> None:
    kept = Ngrams()
    for _ in range(3):
        cut = text[: data.draw(st.integers(1, len(text)))] + data.draw(TEXTS)
        old, new = draft(kept, cut), draft(Ngrams(), cut)
        assert (old is None) == (new is None)
        if old is not None and new is not None:
            assert (guesses(old), old.kind, old.sent) == (guesses(new), new.kind, new.sent)
