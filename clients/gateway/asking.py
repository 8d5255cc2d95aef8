"""From a prompt and what a request wants of it to an answer on its way."""

from collections.abc import Callable, Sequence

from clients.completion.request import Constraint, Request, Sampling
from clients.gateway.admission import Ticket
from clients.gateway.answer import Answer
from clients.gateway.fields import refusal
from clients.gateway.served import Served

__all__ = ["MOST_CHOICES", "ask", "check_length"]

MOST_CHOICES = 16  # answers to one prompt
TOO_LONG = "context_length_exceeded"
CHARACTERS = 64  # of a token on average: no text has more, so longer ones need no count
CONTEXT = 4  # tokens of a prompt that say how the text of its answer begins
DEFAULT_LIMIT = 4096  # tokens of an answer for which the request gives no limit: volunteers compute them


def check_length(served: Served, characters: int, param: str) -> None:
    """Raises ApiError 400 for a prompt that is certainly too long; turning it into tokens could take seconds."""
    if characters > CHARACTERS * served.max_positions:
        message = f"{served.name} reads at most {served.max_positions} tokens, prompt and answer together; "
        raise refusal(f"{message}this prompt has {characters} characters: shorten it", param, TOO_LONG)


def ask(
    ticket: Ticket,
    served: Served,
    prompt: Sequence[int],
    *,
    param: str,
    limit: int | None = None,
    sampling: Sampling | None = None,
    stops: Sequence[str] = (),
    choices: int = 1,
    logprobs: int | None = None,
    constraint: Callable[[], Constraint] | None = None,
    show_special_tokens: bool = False,
    goes_on: bool = False,
) -> Answer:
    """An answer of at most `limit` tokens (DEFAULT_LIMIT where None), and of no more than the model's context leaves.
    Raises ApiError 400, naming `param`, when that is nothing; else as `Ticket.submit`. `goes_on`: its text goes on from
    that of the prompt, as no chat does."""
    left = served.max_positions - len(prompt)
    if left < 1:
        message = f"{served.name} reads at most {served.max_positions} tokens, prompt and answer together; "
        raise refusal(f"{message}this prompt alone has {len(prompt)}: shorten it", param, TOO_LONG)
    request = Request(
        prompt=tuple(prompt),
        max_new_tokens=min(left, DEFAULT_LIMIT if limit is None else limit),
        stop_tokens=served.end_tokens,
        choices=choices,
        sampling=served.sampling if sampling is None else sampling,
        logprobs=logprobs,
        constraint=constraint,
    )
    return Answer(
        ticket.submit(served, request),
        served.tokenizer,
        prompt_tokens=len(prompt),
        choices=choices,
        stop_strings=stops,
        stop_tokens=served.end_tokens,
        show_special_tokens=show_special_tokens,
        before=prompt[-CONTEXT:] if goes_on else (),
    )
