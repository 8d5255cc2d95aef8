import pytest
import torch
from torch import Tensor

from swarm.quality import perplexity, prose


def bigrams(tokens: Tensor) -> Tensor:
    """A model that says with probability 3/4 that the next of four tokens is the one after this, and knows nothing
    else."""
    logits = torch.full((len(tokens), 4), 1 / 12)
    return logits.scatter(1, ((tokens + 1) % 4)[:, None], 0.75).log()


@pytest.mark.parametrize("window", [2, 5, 9, 100])
def test_perplexity_is_the_inverse_of_the_mean_probability(window: int) -> None:
    right = torch.arange(41) % 4
    assert perplexity(bigrams, right, window=window) == pytest.approx(4 / 3)
    wrong = torch.zeros(41, dtype=torch.int64)
    assert perplexity(bigrams, wrong, window=window) == pytest.approx(12)


def test_windows_are_as_long_as_was_said() -> None:
    seen: list[int] = []

    def logits_of(tokens: Tensor) -> Tensor:
        seen.append(len(tokens))
        return bigrams(tokens)

    perplexity(logits_of, torch.arange(20) % 4, window=8)
    assert seen == [8, 8, 6]


def test_nothing_to_predict_is_refused() -> None:
    with pytest.raises(ValueError, match="1 tokens in windows of 512 leave nothing"):
        perplexity(bigrams, torch.zeros(1, dtype=torch.int64))


def test_the_text_that_comes_along_is_long_enough_and_plain() -> None:
    text = prose()
    assert 1500 < len(text.split()) < 3000
    assert text.isascii()
