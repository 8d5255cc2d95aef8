import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from clients.terminal.shelf import stored_models
from swarm.catalogue import known_names
from swarm.cli import run
from tests.models import tiny_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """A hub's cache with two models: one whole, one of which a shard is missing."""
    model = tiny_model("llama", tmp_path / "model")
    for name in ("org--whole", "HuggingFaceTB--SmolLM2-1.7B-Instruct"):
        shutil.copytree(model, tmp_path / "hub" / f"models--{name}" / "snapshots" / "c0ffee")
    min((tmp_path / "hub").glob("models--Hugging*/snapshots/*/*.safetensors")).unlink()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return {"HF_HUB_CACHE": str(tmp_path / "hub")}


def test_models_are_listed_whole_or_in_part(home: Mapping[str, str], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(tmp_path / "model", cache / "gguf" / "My-Model.Q8_0-0123456789abcdef-v1")
    mine, part, whole = stored_models(cache, home)
    assert (mine.name, mine.kind, mine.whole, mine.blocks) == ("My-Model.Q8_0", "gguf", True, 4)
    assert (part.name, part.kind, part.whole) == ("smollm2-1.7b", "hub", False)
    assert part.files == part.wanted - 1
    assert (whole.name, whole.precisions, whole.trouble) == ("org/whole", ("f32",), None)
    assert whole.bytes == sum(path.stat().st_size for path in whole.folder.iterdir())


def test_broken_models_are_listed_with_what_is_wrong(home: Mapping[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--org--whole" / "snapshots" / "c0ffee"
    shard = max(folder.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 1)
    assert f"{shard.name} is damaged or cut short" in str(stored_models(tmp_path, home)[1].trouble)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x"}}')
    assert "the index names no files" in str(stored_models(tmp_path, home)[1].trouble)


def test_list_is_a_table_or_an_object(
    home: Mapping[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["list", "--all", "--cache-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "org/whole" in shown
    assert "qwen3-0.6b" in shown
    assert run(["list", "--json", "--cache-dir", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)["models"]
    assert [(model["name"], model["whole"]) for model in found] == [("smollm2-1.7b", False), ("org/whole", True)]


def test_names_for_completion_are_aliases_and_what_was_fetched(home: Mapping[str, str]) -> None:
    names = known_names(home)
    assert "smollm2" in names
    assert "org/whole" in names
