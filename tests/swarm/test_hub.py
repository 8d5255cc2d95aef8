"""Models fetched over HTTP from a hub on this machine."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from swarm.checkpoint import Checkpoint, client_weights, load_span, resolve
from swarm.errors import ModelError
from swarm.hub import looks_like_hub_id
from swarm.ids import Span
from tests.hub_server import COMMIT, OTHER_COMMIT, HubServer, hub_server
from tests.models import tiny_model

REVISIONS = ("main", "v2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_model("mistral", root / name, seed=seed) for seed, name in enumerate(REVISIONS)}


@pytest.fixture
def hub(models: dict[str, Path]) -> Iterator[HubServer]:
    revisions = {"main": models["main"], COMMIT: models["main"], "v2": models["v2"], OTHER_COMMIT: models["v2"]}
    repositories = {"org/tiny": revisions, "org/secret": revisions}
    with hub_server(repositories, private=frozenset({"org/secret"})) as server:
        yield server


class User:
    """Somebody with a cache of converted models and a cache of the hub's files."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.cache, self.hub_cache, self.endpoint = folder / "cache", folder / "hub", endpoint

    def resolve(
        self, name: str, *, revision: str | None = None, token: str | None = None, offline: bool = False
    ) -> Checkpoint:
        return resolve(
            name,
            cache=self.cache,
            revision=revision,
            token=token,
            offline=offline,
            endpoint=self.endpoint,
            hub_cache=self.hub_cache,
        )


@pytest.fixture
def user(tmp_path: Path, hub: HubServer) -> User:
    return User(tmp_path, hub.url)


def holders(checkpoint: Checkpoint, *, blocks: Span | None) -> set[str]:
    """The files that hold a tensor of `blocks`; None: of the client."""

    def wanted(name: str) -> bool:
        block = checkpoint.architecture.block_index(name)
        return block is None if blocks is None else block is not None and block in blocks

    return {file for name, file in checkpoint.shards.index.items() if wanted(name)}


def test_finding_a_model_fetches_no_weights(user: User, hub: HubServer) -> None:
    checkpoint = user.resolve("org/tiny")
    assert checkpoint.num_blocks == 4
    assert "config.json" in hub.fetched
    assert not [file for file in hub.fetched if file.endswith(".safetensors")]


def test_a_span_fetches_only_the_shards_that_hold_it(user: User, hub: HubServer) -> None:
    checkpoint = user.resolve("org/tiny")
    hub.fetched.clear()
    load_span(checkpoint, Span(2, 3), dtype=torch.float32)
    assert set(hub.fetched) == holders(checkpoint, blocks=Span(2, 3)) < set(checkpoint.shards.files)


def test_a_client_fetches_only_the_shards_that_hold_no_blocks(user: User, hub: HubServer) -> None:
    checkpoint = user.resolve("org/tiny")
    hub.fetched.clear()
    weights = client_weights(checkpoint)
    assert set(hub.fetched) == holders(checkpoint, blocks=None) < set(checkpoint.shards.files)
    assert set(weights) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_what_was_fetched_once_is_not_fetched_again(user: User, hub: HubServer) -> None:
    load_span(user.resolve("org/tiny"), Span(0, 1), dtype=torch.float32)
    hub.fetched.clear()
    load_span(user.resolve("org/tiny"), Span(0, 1), dtype=torch.float32)
    assert hub.fetched == []


def test_a_hub_id_and_a_local_copy_have_one_digest(user: User, models: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(models["main"], tmp_path / "copy")
    assert user.resolve("org/tiny").digest == user.resolve(str(copy)).digest


def test_a_revision_is_another_model(user: User, models: dict[str, Path]) -> None:
    second = user.resolve("org/tiny", revision="v2")
    assert second.digest == user.resolve("org/tiny", revision=OTHER_COMMIT).digest != user.resolve("org/tiny").digest
    ours = load_span(second, Span(0, 1), dtype=torch.float32).state_dict()
    local = load_span(user.resolve(str(models["v2"])), Span(0, 1), dtype=torch.float32).state_dict()
    assert all(torch.equal(ours[name], local[name]) for name in local)


def test_an_unknown_revision_is_said(user: User) -> None:
    with pytest.raises(ModelError, match="no revision 'v9'"):
        user.resolve("org/tiny", revision="v9")


def test_an_unknown_model_is_said(user: User) -> None:
    with pytest.raises(ModelError, match=r"the hub has no model 'org/none'.*check the name"):
        user.resolve("org/none")


def test_a_private_model_needs_a_token(user: User) -> None:
    with pytest.raises(ModelError, match="HF_TOKEN"):
        user.resolve("org/secret", token="hf_bad")
    assert user.resolve("org/secret", token="hf_good").num_blocks == 4


def test_a_token_never_shows(user: User) -> None:
    assert "hf_good" not in repr(user.resolve("org/secret", token="hf_good").shards.repo)


def test_offline_works_with_what_was_fetched_before(user: User, hub: HubServer) -> None:
    online = user.resolve("org/tiny")
    load_span(online, Span(0, 1), dtype=torch.float32)
    hub.requests.clear()
    offline = user.resolve("org/tiny", offline=True)
    assert offline.digest == online.digest
    load_span(offline, Span(0, 1), dtype=torch.float32)
    with pytest.raises(ModelError, match=r"not in the local cache.*go online"):
        load_span(offline, Span(3, 4), dtype=torch.float32)
    assert hub.requests == []


def test_offline_with_an_empty_cache_is_said(user: User) -> None:
    with pytest.raises(ModelError, match=r"not in the local cache.*go online"):
        user.resolve("org/tiny", offline=True)


def test_a_hub_that_is_not_there_is_said(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = User(tmp_path, f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(ModelError, match=r"hub.*check the network"):
            nobody.resolve("org/tiny")


def test_a_repository_without_safetensors_is_said(tmp_path: Path, models: dict[str, Path]) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(models["main"] / "config.json", folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with hub_server({"org/pickled": {"main": folder, COMMIT: folder}}) as server:
        someone = User(tmp_path, server.url)
        with pytest.raises(ModelError, match="no safetensors weights"):
            someone.resolve("org/pickled")


def test_a_single_file_without_an_index_is_fetched_whole(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "one", max_shard_size="1GB")
    with hub_server({"org/one": {"main": folder, COMMIT: folder}}) as server:
        someone = User(tmp_path, server.url)
        checkpoint = someone.resolve("org/one")
        assert "model.safetensors" not in server.fetched
        load_span(checkpoint, Span(1, 2), dtype=torch.float32)
        assert "model.safetensors" in server.fetched
        assert checkpoint.digest == someone.resolve(str(folder)).digest


def test_the_hubs_own_environment_is_honoured(hub: HubServer, tmp_path: Path) -> None:
    """In a process of its own, since huggingface_hub reads it once."""
    script = """
import sys
from pathlib import Path
from swarm.checkpoint import resolve
print(resolve("org/secret", cache=Path(sys.argv[1])).folder)
"""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_good"}
    command = [sys.executable, "-c", script, str(tmp_path / "cache")]
    answer = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert Path(answer.stdout.strip()).is_relative_to(tmp_path / "home")


@pytest.mark.parametrize("name", ["gpt2", "a/b/c", "../x", "/abs/path", "org/", "org/na me", "./folder"])
def test_only_organisation_and_name_make_a_hub_id(name: str) -> None:
    assert not looks_like_hub_id(name)
