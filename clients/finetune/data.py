"""Rows to learn from: texts, questions with answers, or chats; as token ids, and which of them count.

A `.txt` file is cut into rows at its blank lines. A `.jsonl` file has one object a line: `text`, which counts as a
whole; `prompt` and `completion`, of which the completion counts; or `messages` with `role` and `content`, of which the
assistant's count. Anything else is taken for the name of a dataset on the hub, read by the `datasets` library.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clients.chat import Tokenizer
from clients.finetune.settings import WITH_VIRTUAL_TOKENS, Settings
from swarm.errors import UsageError

__all__ = ["Row", "collate", "read_rows", "rows_for"]

IGNORED = -100  # the label of a token that does not count
MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Row:
    tokens: tuple[int, ...]
    counts: tuple[bool, ...]  # which tokens the loss is of


def rows_for(settings: Settings, tokenizer: Tokenizer, *, context: int) -> list[Row]:
    """What a run learns from; `context`: tokens that the model has room for. Raises UsageError."""
    virtual = settings.virtual_tokens if settings.method in WITH_VIRTUAL_TOKENS else 0
    if context - virtual < 2:
        raise UsageError(f"--virtual-tokens {virtual} leaves no room in this model's context of {context}")
    return read_rows(
        settings.data, tokenizer, length=settings.max_length, truncate=settings.truncate, context=context - virtual
    )


def read_rows(
    source: str, tokenizer: Tokenizer, *, length: int, truncate: bool, context: int = sys.maxsize
) -> list[Row]:
    """Rows of `length` tokens at most, and of what a model's `context` has room for. Raises UsageError that names the
    line where something is wrong."""
    rows = []
    most = min(length, context)
    ways = "or give --truncate" if context <= length else "raise --max-length, or give --truncate"
    for where, record in _records(source):
        row = _row(record, tokenizer, where)
        if len(row.tokens) > most and not truncate:
            whose = "this model takes" if context < length else "a row has"
            raise UsageError(f"{where} has {len(row.tokens)} tokens and {whose} {most} at most: shorten it, {ways}")
        row = Row(row.tokens[:most], row.counts[:most])
        if len(row.tokens) > 1 and any(row.counts[1:]):
            rows.append(row)
    if not rows:
        raise UsageError(f"{source} has nothing to learn from: not one row with two tokens or more that count")
    return rows


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """A batch, padded on the right: `input_ids`, `attention_mask` and `labels` [rows, columns]."""
    columns = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), columns, dtype=torch.int64)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, IGNORED)
    for index, row in enumerate(rows):
        own = torch.tensor(row.tokens)
        tokens[index, : len(own)], mask[index, : len(own)] = own, 1
        labels[index, : len(own)] = own.masked_fill(~torch.tensor(row.counts), IGNORED)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def _records(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    path = Path(source).expanduser()
    if not path.exists() and (path.suffix or source.count("/") != 1):
        raise UsageError(f"there is no file {source}")
    if not path.exists():
        yield from _from_hub(source)
    elif path.suffix == ".jsonl":
        yield from _from_json_lines(path)
    elif path.suffix == ".txt":
        for number, paragraph in enumerate(_text(path).split("\n\n"), 1):
            if paragraph.strip():
                yield f"{source}, paragraph {number},", {"text": paragraph.strip()}
    else:
        raise UsageError(f"{source} is neither .jsonl nor .txt")


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} is larger than {MOST_BYTES >> 20} MiB: cut it")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read as text: {error}") from error


def _from_json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{where} is no JSON: {error}") from error
        if not isinstance(record, dict):
            raise UsageError(f"{where} is no JSON object")
        yield where, record


def _from_hub(name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        datasets = import_module("datasets")
    except ModuleNotFoundError:
        raise UsageError(
            f"there is no file {name}; to read it as a dataset of the hub, install the Python package datasets"
        ) from None
    try:
        rows: Iterable[Any] = datasets.load_dataset(name, split="train")
    except Exception as error:  # the library's errors share no class
        raise UsageError(f"the dataset {name} can't be read: {str(error).splitlines()[0]}") from error
    for number, row in enumerate(rows, 1):
        yield f"row {number} of {name}", row


def _row(record: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> Row:
    if isinstance(record.get("messages"), list):
        return _chat(record["messages"], tokenizer, where)
    if isinstance(record.get("text"), str):
        tokens = [*tokenizer(record["text"]).input_ids, *_end(tokenizer)]
        return Row(tuple(tokens), (True,) * len(tokens))
    if isinstance(record.get("prompt"), str) and isinstance(record.get("completion"), str):
        if tokenizer.chat_template:
            question = {"role": "user", "content": record["prompt"]}
            return _chat([question, {"role": "assistant", "content": record["completion"]}], tokenizer, where)
        before = tokenizer(record["prompt"]).input_ids
        after = [*tokenizer(record["completion"], add_special_tokens=False).input_ids, *_end(tokenizer)]
        return Row((*before, *after), (False,) * len(before) + (True,) * len(after))
    raise UsageError(f"{where} has neither `text`, nor `prompt` and `completion`, nor `messages`")


def _end(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _chat(messages: Sequence[Any], tokenizer: Tokenizer, where: str) -> Row:
    """What the assistant says counts."""
    good = all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in messages)
    if not messages or not good:
        raise UsageError(f"{where}: each of `messages` has a `role` and a `content`")
    if not tokenizer.chat_template:
        raise UsageError(f"{where} is a chat, but this model has no chat template: give `text`, or a prompt for it")
    tokens = _encoded(messages, tokenizer)
    counts = [False] * len(tokens)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _encoded(messages[:index], tokenizer, answer=True) if index else []
        after = _encoded(messages[: index + 1], tokenizer)
        if tokens[: len(after)] != after or after[: len(before)] != before:
            return Row(tuple(tokens), (True,) * len(tokens))  # a template that rewrites earlier turns
        counts[len(before) : len(after)] = [True] * (len(after) - len(before))
    return Row(tuple(tokens), tuple(counts))


def _encoded(messages: Sequence[Any], tokenizer: Tokenizer, *, answer: bool = False) -> list[int]:
    encoded = tokenizer.apply_chat_template(list(messages), add_generation_prompt=answer, return_dict=True)
    ids: list[int] = encoded["input_ids"]
    return ids
