"""Rows of texts, questions and chats: what is learned from, and what is wrong with a file."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clients.finetune.data import IGNORED, Row, collate, read_rows, rows_for
from clients.finetune.settings import Settings
from swarm.errors import UsageError


def written(folder: Path, *records: object, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return str(path)


def counted(row: Row, tokenizer: Any) -> str:
    return str(tokenizer.decode([t for t, counts in zip(row.tokens, row.counts, strict=True) if counts]))


def test_all_of_a_text_counts(tmp_path: Path, tokenizer: Any) -> None:
    (row,) = read_rows(written(tmp_path, {"text": "All of it."}), tokenizer, length=64, truncate=False)
    assert all(row.counts)
    assert "All of it." in counted(row, tokenizer)


def test_of_a_question_the_answer_counts(tmp_path: Path, tokenizer: Any) -> None:
    source = written(tmp_path, {"prompt": "Who is there?", "completion": "Nobody at all."})
    (row,) = read_rows(source, tokenizer, length=64, truncate=False)
    assert "Nobody at all." in counted(row, tokenizer)
    assert "Who" not in counted(row, tokenizer)


def test_of_a_chat_all_that_the_assistant_says_counts(tmp_path: Path, tokenizer: Any) -> None:
    turns = [("user", "One?"), ("assistant", "First."), ("user", "Two?"), ("assistant", "Second.")]
    source = written(tmp_path, {"messages": [{"role": role, "content": text} for role, text in turns]})
    (row,) = read_rows(source, tokenizer, length=128, truncate=False)
    said = counted(row, tokenizer)
    assert "First." in said
    assert "Second." in said
    assert "One?" not in said
    assert "Two?" not in said


def test_blank_lines_part_the_rows_of_a_text_file(tmp_path: Path, tokenizer: Any) -> None:
    source = written(tmp_path, "One row\nof two lines.", "", "Another.", name="rows.txt")
    assert len(read_rows(source, tokenizer, length=64, truncate=False)) == 2


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], "line 1 .* is no JSON"),
        (['{"text": "good one"}', "[1]"], "line 2 .* no JSON object"),
        ([{"body": "x"}], "neither `text`"),
        ([{"messages": [{"role": "user"}]}], "has a `role` and a `content`"),
        ([""], "nothing to learn from"),
        ([{"text": "word " * 200}], "and a row has 32 at most"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(
    lines: list[object], words: str, tmp_path: Path, tokenizer: Any
) -> None:
    with pytest.raises(UsageError, match=words):
        read_rows(written(tmp_path, *lines), tokenizer, length=32, truncate=False)


def test_longer_rows_are_cut_when_asked(tmp_path: Path, tokenizer: Any) -> None:
    (row,) = read_rows(written(tmp_path, {"text": "word " * 200}), tokenizer, length=32, truncate=True)
    assert len(row.tokens) == 32


def test_rows_longer_than_the_context_are_refused_before_anything_is_trained(tmp_path: Path, tokenizer: Any) -> None:
    source = written(tmp_path, {"text": "short"}, {"text": "word " * 200})
    with pytest.raises(UsageError, match=r"line 2 .* this model takes 24 at most: shorten it, or give --truncate"):
        read_rows(source, tokenizer, length=512, truncate=False, context=24)
    rows = read_rows(source, tokenizer, length=512, truncate=True, context=24)
    assert max(len(row.tokens) for row in rows) == 24


@pytest.mark.parametrize(("method", "longest"), [("lora", 32), ("prompt", 16), ("prefix", 16)])
def test_virtual_tokens_take_room_in_the_context(method: str, longest: int, tmp_path: Path, tokenizer: Any) -> None:
    source = written(tmp_path, {"text": "word " * 200})
    plan = Settings(model="tiny", data=source, output=tmp_path, method=method, truncate=True)
    (row,) = rows_for(plan, tokenizer, context=32)
    assert len(row.tokens) == longest
    with pytest.raises(UsageError, match="leaves no room"):
        rows_for(replace(plan, method="prompt"), tokenizer, context=16)


@pytest.mark.parametrize(("name", "words"), [("missing.jsonl", "no file"), ("rows.csv", "neither .jsonl nor .txt")])
def test_files_that_cannot_be_read_are_named(name: str, words: str, tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(UsageError, match=words):
        read_rows(str(tmp_path / name), tokenizer, length=32, truncate=False)


def test_without_the_library_that_reads_the_hubs_datasets_it_is_named(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # an import of it fails as where it is not installed
    with pytest.raises(UsageError, match="install the Python package datasets"):
        read_rows("somebody/rows", tokenizer, length=32, truncate=False)


def test_padding_and_what_does_not_count_have_no_label() -> None:
    batch = collate([Row((5, 6, 7), (False, True, True)), Row((8, 9), (True, True))])
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, 9, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
