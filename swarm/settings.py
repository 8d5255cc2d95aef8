"""Where options come from when the command line does not name them: the user's file of defaults.

`~/.config/swarm/config.toml` (`$XDG_CONFIG_HOME` moves it). Keys are long options without their dashes; a key at the
top holds for every command that has the option, a key in a table for the command of that name alone:

    initial-peers = ["/ip4/203.0.113.7/tcp/31330/p2p/12D3..."]

    [serve]
    kv-cache-tokens = 8192

A command of two words, such as `swarm bench wan`, has the table [bench.wan]; keys of [bench] hold for all of them.
"""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import typer

from swarm.errors import UsageError

__all__ = ["Config", "config_path", "data_folder", "defaults_for", "outranked", "read_config"]

Config = Mapping[str, Any]
_RANKS = ("DEFAULT", "DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")  # where a value is from, the most direct last


def config_path(environ: Mapping[str, str], home: Path) -> Path:
    """The user's file of defaults. As the XDG specification says, a folder that is not absolute is ignored."""
    folder = Path(environ.get("XDG_CONFIG_HOME", ""))
    return (folder if folder.is_absolute() else home / ".config") / "swarm" / "config.toml"


def data_folder(environ: Mapping[str, str], home: Path) -> Path:
    """Where a user's identities are kept; with the same exception."""
    folder = Path(environ.get("XDG_DATA_HOME", ""))
    return (folder if folder.is_absolute() else home / ".local" / "share") / "swarm"


def read_config(path: Path, *, required: bool, commands: Collection[str]) -> Config:
    """What the file says; nothing when it is absent and not `required`. Raises UsageError when it can't be used."""
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise UsageError(f"there is no configuration file {path}") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the configuration file {path} can't be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the configuration file {path} is no valid TOML: {error}") from error
    for name, value in config.items():
        if isinstance(value, dict) and name not in commands:
            raise UsageError(f"{path} has a table [{name}], but the commands are {', '.join(commands)}")
    return config


def defaults_for(command: str, options: Mapping[str, str], config: Config, path: Path) -> dict[str, Any]:
    """Defaults of one command (its words): parameter name to value. `options` maps its long options (no dashes) to
    parameter names.

    Raises UsageError for a key in the command's own table that is none of its options.
    """
    table: Mapping[str, Any] = config
    shared: dict[str, Any] = {}
    for word in command.split():
        shared |= {_spelled(key): value for key, value in table.items() if not isinstance(value, dict)}
        inner = table.get(word)
        table = inner if isinstance(inner, dict) else {}
    own = {_spelled(key): value for key, value in table.items()}
    for key in own:
        if key not in options:
            table_name = command.replace(" ", ".")
            raise UsageError(f"{path} sets '{key}' in [{table_name}], but `swarm {command}` has no option --{key}")
    return {options[key]: value for key, value in (shared | own).items() if key in options}


def _spelled(key: str) -> str:
    return key.replace("_", "-")


def outranked(context: typer.Context, *exclusive: str) -> frozenset[str]:
    """Of parameters that exclude each other, those that were given less directly than another one: what the command
    line says undoes what the file of defaults says, not only of the same option."""
    ranks = {name: _rank(context, name) for name in exclusive if context.params.get(name)}
    return frozenset(name for name, rank in ranks.items() if rank < max(ranks.values()))


def _rank(context: typer.Context, name: str) -> int:
    source = context.get_parameter_source(name)
    return _RANKS.index(source.name) if source is not None and source.name in _RANKS else 0
