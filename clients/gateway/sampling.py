"""What a request says of how its tokens are chosen, and where its answers end; the same fields in all of OpenAI's APIs.

What a request leaves open is as the model's own generation config says, and neutral where that is silent: temperature
1, as OpenAI has it.
"""

from dataclasses import replace
from typing import Any

from clients.completion.request import Sampling
from clients.gateway.fields import Fields

__all__ = ["MOST_STOPS", "model_sampling", "read_sampling", "read_stops"]

MOST_STOPS = 16
MOST_STOP_LENGTH = 256  # characters
LEAST_TOP_P = 1e-6  # leaves the likeliest token alone
MOST_BIASES = 1024
MOST_TOP_K = 1 << 20
SEEDS = (-(1 << 63), (1 << 64) - 1)

_OF_THE_MODEL = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def model_sampling(generation_config: Any) -> Sampling:
    """What a model's makers recommend in its generation config (of the library; None where it has none)."""
    if generation_config is None or not generation_config.do_sample:
        return Sampling()
    said = {name: getattr(generation_config, name, None) for name in _OF_THE_MODEL}
    return Sampling(**{name: value for name, value in said.items() if value is not None})


def read_sampling(fields: Fields, default: Sampling, *, vocabulary: int) -> Sampling:
    """`vocabulary`: the number of token ids, which bounds those of "logit_bias"."""
    return replace(
        default,
        temperature=fields.number("temperature", 0, 2, default.temperature),
        top_p=max(LEAST_TOP_P, fields.number("top_p", 0, 1, default.top_p)),
        top_k=max(0, fields.whole("top_k", -1, MOST_TOP_K, default.top_k) or 0),  # -1 means all, too
        min_p=fields.number("min_p", 0, 1, default.min_p),
        presence_penalty=fields.number("presence_penalty", -2, 2, default.presence_penalty),
        frequency_penalty=fields.number("frequency_penalty", -2, 2, default.frequency_penalty),
        repetition_penalty=fields.number("repetition_penalty", 0.01, 10, default.repetition_penalty),
        logit_bias=_biases(fields, vocabulary),
        seed=fields.whole("seed", *SEEDS),
    )


def _biases(fields: Fields, vocabulary: int) -> dict[int, float]:
    given = fields.nested("logit_bias")
    if given is None:
        return {}
    if len(given.values) > MOST_BIASES:
        raise fields.refusal("logit_bias", f"'{given.at}' has at most {MOST_BIASES} entries")
    biases: dict[int, float] = {}
    for name in given.values:
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocabulary):
            message = f"'{given.at}' names tokens by ids below {vocabulary}, not by {name[:40]!r}"
            raise fields.refusal("logit_bias", message)
        biases[int(name)] = given.number(name, -100, 100, 0.0)
    return biases


def read_stops(fields: Fields, name: str = "stop") -> tuple[str, ...]:
    """A string or a list of them."""
    if isinstance(fields.get(name), str):
        strings = [fields.need_text(name, most=MOST_STOP_LENGTH)]
    else:
        strings = fields.entries(name, most=MOST_STOPS)
    for at, string in enumerate(strings):
        if not isinstance(string, str) or len(string) > MOST_STOP_LENGTH:
            message = f"'{fields.path(name)}' is a string or a list of strings of at most {MOST_STOP_LENGTH} characters"
            raise fields.refusal(f"{name}[{at}]", message, "invalid_type")
    return tuple(string for string in strings if string)
