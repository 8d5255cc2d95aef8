"""Gateways over a completer that plays given answers, and over a tiny model behind a connection in this process."""

from collections.abc import Iterator

import pytest
from transformers import PreTrainedTokenizerFast

from clients.gateway.served import Served
from swarm.ids import Span
from tests.clients.gateway.bytes_tokenizer import END, bytes_tokenizer
from tests.clients.gateway.live import LiveGateway, record, view_of
from tests.clients.gateway.played import PlayedCompleter


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, with a chat template."""
    return bytes_tokenizer()


@pytest.fixture
def completer(tokenizer: PreTrainedTokenizerFast) -> PlayedCompleter:
    """Answers "Hello there." whatever it is asked; tests may give it other tokens."""
    return PlayedCompleter([*tokenizer.encode("Hello there."), END])


@pytest.fixture
def played(completer: PlayedCompleter, tokenizer: PreTrainedTokenizerFast) -> Served:
    """The model "tiny" of four blocks, held by two peers, with that completer."""
    return _tiny(completer, tokenizer)


def _tiny(completer: PlayedCompleter, tokenizer: PreTrainedTokenizerFast) -> Served:
    view = view_of(record("ada", Span(0, 2)), record("bela", Span(2, 4)))
    return Served(
        name="tiny",
        created=1_700_000_000,
        tokenizer=tokenizer,
        completer=completer,
        max_positions=1024,
        end_tokens=frozenset({END}),
        look=lambda: view,
    )


@pytest.fixture(scope="package")
def standing(tokenizer: PreTrainedTokenizerFast) -> Iterator[LiveGateway]:
    """The same as `live`, one for all tests that leave no trace in it."""
    completer = PlayedCompleter([*tokenizer.encode("Hello there."), END])
    with LiveGateway([_tiny(completer, tokenizer)]) as gateway:
        yield gateway


@pytest.fixture
def live(played: Served) -> Iterator[LiveGateway]:
    """A gateway that serves "tiny"; `live.url` is where."""
    with LiveGateway([played]) as gateway:
        yield gateway
