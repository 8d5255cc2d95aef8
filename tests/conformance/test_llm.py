"""The command `llm`, which many use at a terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.conftest import KEY, MODEL, QUESTION, Local

NEW = 12
GREEDY = ("-o", "temperature", "0", "-o", "max_tokens", str(NEW))


@pytest.fixture(scope="module")
def folder(base_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where llm finds its models and keys; JSON is YAML, too."""
    folder = tmp_path_factory.mktemp("llm")
    model = {
        "model_id": "ours",
        "model_name": MODEL,
        "api_base": base_url,
        "api_key_name": "ours",
        "supports_schema": True,
    }
    (folder / "extra-openai-models.yaml").write_text(json.dumps([model]))
    (folder / "keys.json").write_text(json.dumps({"ours": KEY}))
    return folder


def llm(folder: Path, *options: str) -> str:
    """What it prints."""
    environment = {**os.environ, "LLM_USER_PATH": str(folder), "LLM_LOAD_PLUGINS": ""}
    command = [sys.executable, "-m", "llm", "-m", "ours", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env=environment, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("way", [(), ("--no-stream",)])
def test_question_is_answered_streamed_or_not(folder: Path, local: Local, way: tuple[str, ...]) -> None:
    assert llm(folder, QUESTION, *GREEDY, *way).strip() == local.answer(QUESTION, new=NEW).strip()


def test_answer_fits_a_schema(folder: Path) -> None:
    properties = {"town": {"enum": ["Paris", "Lyon"]}}
    town = {"type": "object", "properties": properties, "required": ["town"], "additionalProperties": False}
    options = ("--schema", json.dumps(town), "-o", "temperature", "0", "-o", "max_tokens", "60")
    assert json.loads(llm(folder, QUESTION, *options))["town"] in ("Paris", "Lyon")
