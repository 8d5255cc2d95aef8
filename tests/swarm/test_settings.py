from pathlib import Path

import pytest

from swarm.errors import UsageError
from swarm.settings import config_path, defaults_for, read_config

OPTIONS = {"kv-cache-tokens": "kv_cache_tokens", "json": "as_json"}
HOME = Path("/home/ada")


def test_file_lies_where_xdg_says() -> None:
    assert config_path({}, HOME) == HOME / ".config/swarm/config.toml"
    assert config_path({"XDG_CONFIG_HOME": "/etc/ada"}, HOME) == Path("/etc/ada/swarm/config.toml")
    assert config_path({"XDG_CONFIG_HOME": "not/absolute"}, HOME) == HOME / ".config/swarm/config.toml"


def test_table_of_the_command_wins_over_shared_keys() -> None:
    config = {"json": True, "kv_cache_tokens": 1, "other": 2, "serve": {"kv-cache-tokens": 3}, "run": {"x": 4}}
    assert defaults_for("serve", OPTIONS, config, Path("c")) == {"as_json": True, "kv_cache_tokens": 3}


def test_absent_file_says_nothing_unless_it_was_named(tmp_path: Path) -> None:
    assert read_config(tmp_path / "none", required=False, commands=()) == {}
    with pytest.raises(UsageError, match="no configuration file"):
        read_config(tmp_path / "none", required=True, commands=())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a = ", "no valid TOML"),
        (b"\xff", "can't be read"),
        (b"[srve]\n", r"table \[srve\], but the commands are serve"),
    ],
)
def test_unusable_file_is_named_with_the_reason(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=sentence) as caught:
        read_config(path, required=False, commands=("serve",))
    assert str(path) in str(caught.value)


def test_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        read_config(tmp_path, required=False, commands=())
