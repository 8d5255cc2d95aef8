"""The body of `/v1/completions`, read whole before anything is begun."""

from collections.abc import Sequence
from dataclasses import dataclass

from clients.completion.request import MOST_LOGPROBS, Sampling
from clients.gateway.asking import MOST_CHOICES
from clients.gateway.chat_request import MOST_TOKENS, wants_usage
from clients.gateway.fields import Fields, describe
from clients.gateway.sampling import read_sampling, read_stops
from clients.gateway.served import Served

__all__ = ["CompletionRequest", "Prompt", "read_completion"]

DEFAULT_TOKENS = 16  # of an answer, as OpenAI has it here
MOST_ANSWERS = 64  # to all prompts of a request

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    prompts: tuple[Prompt, ...]
    limit: int
    sampling: Sampling
    stops: tuple[str, ...]
    choices: int
    logprobs: int | None
    echo: bool
    stream: bool
    usage: bool  # in a last chunk of a stream


def read_completion(fields: Fields, served: Served) -> CompletionRequest:
    """Raises ApiError 400 naming the field that is not as it must be."""
    choices = fields.whole("n", 1, MOST_CHOICES) or 1
    _refuse(fields, choices)
    return CompletionRequest(
        prompts=_prompts(fields, most=MOST_ANSWERS // choices, vocabulary=len(served.tokenizer)),
        limit=fields.whole("max_tokens", 1, MOST_TOKENS) or DEFAULT_TOKENS,
        sampling=read_sampling(fields, served.sampling, vocabulary=len(served.tokenizer)),
        stops=read_stops(fields),
        choices=choices,
        logprobs=fields.whole("logprobs", 0, MOST_LOGPROBS),
        echo=fields.flag("echo"),
        stream=fields.flag("stream"),
        usage=wants_usage(fields),
    )


def _refuse(fields: Fields, choices: int) -> None:
    """What would change an answer, and can't be had here."""
    if fields.text("suffix"):
        message = "'suffix' is not supported here: the model writes on, it does not fill in"
        raise fields.refusal("suffix", message, "unsupported_parameter")
    if fields.whole("best_of", 1, MOST_CHOICES, choices) != choices:
        message = "'best_of' is not supported here beyond 'n': ask for all, with their log probabilities, and choose"
        raise fields.refusal("best_of", message, "unsupported_parameter")
    if fields.flag("echo") and fields.has("logprobs"):
        message = "'echo' is not supported here together with 'logprobs': those of a prompt are not computed"
        raise fields.refusal("echo", message, "unsupported_parameter")


def _prompts(fields: Fields, *, most: int, vocabulary: int) -> tuple[Prompt, ...]:
    """A text, token ids, or a list of at most so many of either."""
    value = fields.need("prompt")
    if isinstance(value, str):
        return (fields.need_text("prompt"),)
    entries = fields.entries("prompt")
    if not entries:
        raise fields.refusal("prompt", "'prompt' is empty: there is nothing to go on from")
    if type(entries[0]) is int:
        return (_ids(fields, "prompt", entries, vocabulary),)
    if len(entries) > most:
        raise fields.refusal("prompt", f"'prompt' has at most {most} entries with this 'n', not {len(entries)}")
    return tuple(_prompt(fields, f"prompt[{at}]", entry, vocabulary) for at, entry in enumerate(entries))


def _prompt(fields: Fields, name: str, entry: object, vocabulary: int) -> Prompt:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, list) and entry:
        return _ids(fields, name, entry, vocabulary)
    raise fields.refusal(name, f"'{name}' is a string or a list of token ids, not {describe(entry)}", "invalid_type")


def _ids(fields: Fields, name: str, entries: Sequence[object], vocabulary: int) -> tuple[int, ...]:
    ids = tuple(entry for entry in entries if type(entry) is int and 0 <= entry < vocabulary)
    if len(ids) != len(entries):
        raise fields.refusal(name, f"'{name}' is a list with something that is no token id below {vocabulary}")
    return ids
