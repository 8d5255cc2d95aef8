"""What an answer may look like: a grammar, and the constraint that makes sampling keep to it.

Grammars are written in the Lark dialect of llguidance, which finds the tokens that may come next. What it needs to know
of a tokenizer is made once for each model, and a grammar is compiled before its request waits for anything.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from anyio import CapacityLimiter, to_thread
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from clients.completion.request import Constraint
from clients.gateway.errors import ApiError
from clients.gateway.fields import refusal
from clients.gateway.served import Served
from swarm.errors import UsageError

__all__ = ["MOST_GRAMMAR", "Grammar", "Grammars", "json_rule"]

MOST_GRAMMAR = 1 << 16  # characters of one request's grammar; 0.1 s to compile where it is as bad as it can be
COMPILE_SECONDS = 10.0  # also for those that wait for others
BUSY_SECONDS = 2.0
BLANKS = r"[\x20\x0A\x0D\x09]{0,24}"  # between the parts of JSON; a model could go on with white space for ever
_LIMITS = LLParserLimits(step_max_items=20_000, max_lexer_states=50_000, verbose_errors=False)


@dataclass(frozen=True, slots=True)
class Grammar:
    """`lark`: rules, the first of which is `start`. `param` is the field of the request that asked for it; `parts` are
    rules for single values in it with the fields of their own, to say which one is wrong."""

    lark: str
    param: str
    parts: tuple[tuple[str, str], ...] = ()


def json_rule(schema: Mapping[str, Any], *, strict: bool) -> str:
    """The right side of a rule for JSON by `schema`. What is not known about schemas is an error if `strict`, else it
    is left out."""
    options = {"whitespace_flexible": True, "whitespace_pattern": BLANKS, "lenient": not strict}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


class Grammars:
    """Compiles grammars for the models of one gateway."""

    def __init__(self) -> None:
        self._tables: dict[str, LLTokenizer] = {}  # by model
        self._limiter = CapacityLimiter(1)  # compiling holds one core at most

    def prepare(self, served: Served) -> None:
        """Do what else the first grammar for `served` would wait for, and every other request with it: a quarter of a
        second for 49 000 tokens, in which no other thread runs."""
        with suppress(UsageError):  # who asks for a grammar is told; everybody else can be answered
            self._table(served)

    async def compile(self, served: Served, grammar: Grammar | None) -> Callable[[], Constraint] | None:
        """What makes a constraint for each choice. Raises ApiError 400, naming the field, for a grammar that is wrong
        or too large."""
        if grammar is None:
            return None
        if len(grammar.lark) > MOST_GRAMMAR:
            raise refusal(f"what the answer must look like takes over {MOST_GRAMMAR} characters", grammar.param)
        work = partial(self._compile, served, grammar)
        try:
            async with asyncio.timeout(COMPILE_SECONDS):
                return await to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)
        except TimeoutError:
            message = "too many grammars are being compiled; try again later"
            raise ApiError(503, message, code="busy", retry_after=BUSY_SECONDS) from None

    def _compile(self, served: Served, grammar: Grammar) -> Callable[[], Constraint]:
        table = self._table(served)
        matcher = _matcher(table, grammar.lark)
        matcher.compute_bitmask()  # the first step shows what is too much for any
        if matcher.is_error():
            raise _blame(table, grammar, matcher.get_error())
        return lambda: _Matching(matcher.deep_copy())

    def _table(self, served: Served) -> LLTokenizer:
        if served.base not in self._tables:
            self._tables[served.base] = _table_of(served)
        return self._tables[served.base]


def _table_of(served: Served) -> LLTokenizer:
    refusal = f"the tokenizer of {served.name} can't be told which tokens fit a grammar"
    if not isinstance(served.tokenizer, PreTrainedTokenizerFast):
        raise UsageError(refusal)
    try:
        return from_tokenizer(served.tokenizer, eos_token=sorted(served.end_tokens))
    except ValueError as error:
        raise UsageError(f"{refusal}: {error}") from error


def _matcher(table: LLTokenizer, lark: str) -> LLMatcher:
    return LLMatcher(table, LLMatcher.grammar_from_lark(lark), log_level=0, limits=_LIMITS)


def _blame(table: LLTokenizer, grammar: Grammar, message: str) -> ApiError:
    """Names the field that is wrong, when it is wrong by itself."""
    for param, rule in grammar.parts:
        part = _matcher(table, f"start: {rule}")
        part.compute_bitmask()
        if part.is_error():
            return _refusal(part.get_error(), param)
    return _refusal(message, grammar.param)


def _refusal(message: str, param: str) -> ApiError:
    return refusal(f"'{param}' is nothing that an answer can be held to: {_plain(message)}", param, "invalid_grammar")


def _plain(message: str) -> str:
    return message.partition("<non-verbose/>")[0].strip()


class _Matching:
    """A constraint: where one choice is in its grammar. Where the grammar is complete only end tokens may come."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self, logits: Tensor) -> None:
        """Raises UsageError when the grammar has become too complex to go on."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: logits.shape[-1]]  # a head may be wider, or cut short
        if self._matcher.is_error() or not allowed.any():
            why = _plain(self._matcher.get_error()) or "no token fits"
            raise UsageError(f"the answer can't go on as it must look: {why}")
        logits[len(allowed) :] = -torch.inf
        logits[: len(allowed)].masked_fill_(torch.from_numpy(allowed == 0).to(logits.device), -torch.inf)

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)  # one that does not fit shows in the next mask
