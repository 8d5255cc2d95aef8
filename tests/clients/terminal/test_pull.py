import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.terminal.fetching import Part, fetch, files_to_fetch
from swarm.checkpoint import Checkpoint, resolve
from swarm.cli import run
from swarm.errors import UsageError
from swarm.ids import Span
from tests.hub_server import COMMIT, HubServer, hub_server
from tests.models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("mistral", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def hub(model: Path) -> Iterator[HubServer]:
    with hub_server({"org/tiny": {"main": model, COMMIT: model}}) as server:
        yield server


@pytest.fixture
def checkpoint(hub: HubServer, tmp_path: Path) -> Checkpoint:
    return resolve("org/tiny", cache=tmp_path / "cache", endpoint=hub.url, hub_cache=tmp_path / "hub")


def test_all_or_a_part_of_a_model_is_fetched(checkpoint: Checkpoint, hub: HubServer, model: Path) -> None:
    whole, part = files_to_fetch(checkpoint, Part()), files_to_fetch(checkpoint, Part(Span(1, 2)))
    client = files_to_fetch(checkpoint, Part(client=True))
    both = files_to_fetch(checkpoint, Part(Span(0, 4), client=True))
    assert part.keys() < whole.keys()
    assert client.keys() < whole.keys()
    assert both.keys() == whole.keys()
    assert not [file for file in hub.fetched if file in whole]
    for file, total in part.items():
        came: list[int] = []
        fetch(checkpoint, file, came.append)
        assert sum(came) == total == (model / file).stat().st_size
    assert {file for file in hub.fetched if file in whole} == part.keys()


def test_what_is_here_is_not_fetched_again(checkpoint: Checkpoint, hub: HubServer) -> None:
    (file, *_) = files_to_fetch(checkpoint, Part())
    came: list[int] = []
    for _ in range(2):
        fetch(checkpoint, file, came.append)
    assert hub.fetched.count(file) == 1
    with pytest.raises(UsageError, match="has blocks 0:4"):
        files_to_fetch(checkpoint, Part(Span(3, 5)))


def test_local_model_needs_no_fetching(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    assert run(["pull", str(copy), "--cache-dir", str(tmp_path)]) == 0
    assert f"copy is in {copy}" in capsys.readouterr().out
    assert run(["pull", str(copy), "--json", "--cache-dir", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["files"], found["fetched"]) == ("copy", [], 0)
    assert run(["pull", "smolm2"]) == 2
    assert "did you mean smollm2" in capsys.readouterr().err
