import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from swarm.cli import COMMANDS, Entry, Group, load_command, run
from swarm.errors import MissingBlocks, ModelError, NetworkError, StreamClosed
from swarm.settings import outranked
from swarm.version import __version__


def show(
    model: Annotated[str, typer.Argument(help="A model.")],
    kv_cache_tokens: Annotated[int, typer.Option(help="Tokens.")] = 1,
    initial_peers: Annotated[list[str] | None, typer.Option(help="Peers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what arrived."""
    typer.echo(json.dumps([model, kv_cache_tokens, initial_peers, as_json]))


def choose(context: typer.Context, old: str = "", new: bool = False) -> None:
    """Join the old or begin anew, and say which was given less directly."""
    typer.echo(sorted(outranked(context, "old", "new")))


def fail(kind: str) -> None:
    """Fail in the way of `kind`."""

    async def in_a_group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(raise_network_error())

    async def raise_network_error() -> None:
        raise NetworkError("the daemon is gone")

    match kind:
        case "model":
            raise ModelError("there is no model called x\nand \x1b[2Jno escape")
        case "blocks":
            raise MissingBlocks([1, 2], "nobody holds blocks 1:3")
        case "group":
            asyncio.run(in_a_group())
        case "memory":
            raise MemoryError("1 GB")
        case "interrupt":
            raise KeyboardInterrupt
        case "interrupted group":
            raise BaseExceptionGroup("several", [StreamClosed("gone"), KeyboardInterrupt()])
        case _:
            raise ZeroDivisionError


FAIL = Entry(f"{__name__}:fail", "Fail.")
HERE: dict[str, Entry | Group] = {
    "show": Entry(f"{__name__}:show", "Show."),
    "choose": Entry(f"{__name__}:choose", "Choose."),
    "fail": FAIL,
    "absent": Entry("clients.no_such_module:x", "Not installed."),
    "two": Group("Commands of two words.", {"words": Entry(f"{__name__}:show", "Show."), "fail": FAIL}),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("SWARM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "swarm").mkdir()
    return tmp_path / "swarm" / "config.toml"


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> list[object]:
    assert run(["show", "m", *args], HERE) == 0
    values = json.loads(capsys.readouterr().out)
    assert isinstance(values, list)
    return values


def test_help_lists_every_command_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert name in printed
        assert entry.help in printed
    assert "SWARM_KV_CACHE_TOKENS" in printed
    assert "config.toml" in printed


def test_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"swarm {__version__}\n"


def test_flag_wins_over_variable_over_file_over_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    assert shown(capsys) == ["m", 1, None, False]
    config.write_text("kv-cache-tokens = 2\n[show]\ninitial-peers = ['/a', '/b']\njson = true\n")
    assert shown(capsys) == ["m", 2, ["/a", "/b"], True]
    monkeypatch.setenv("SWARM_KV_CACHE_TOKENS", "3")
    monkeypatch.setenv("SWARM_INITIAL_PEERS", "/c /d")
    assert shown(capsys) == ["m", 3, ["/c", "/d"], True]
    assert shown(capsys, "--kv-cache-tokens", "4", "--initial-peers", "/e") == ["m", 4, ["/e"], True]


def test_what_is_given_more_directly_undoes_what_excludes_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    def weaker(*args: str) -> str:
        assert run(["choose", *args], HERE) == 0
        return capsys.readouterr().out.strip()

    assert weaker() == "[]"
    assert weaker("--old", "x", "--new") == "[]"
    config.write_text("old = 'x'\n")
    assert weaker("--new") == "['old']"
    monkeypatch.setenv("SWARM_NEW", "1")
    assert weaker() == "['old']"
    assert weaker("--old", "y") == "['new']"


def test_group_of_commands_lists_them_and_passes_everything_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    assert run(["two", "--help"], HERE) == 0
    printed = capsys.readouterr().out
    assert "Commands of two words." in printed
    assert "words" in printed
    config.write_text("kv-cache-tokens = 2\n[two]\njson = true\n[two.words]\ninitial-peers = ['/a']\n")
    monkeypatch.setenv("SWARM_KV_CACHE_TOKENS", "3")
    assert run(["two", "words", "m"], HERE) == 0
    assert json.loads(capsys.readouterr().out) == ["m", 3, ["/a"], True]
    assert run(["two", "fail", "blocks", "--debug"], HERE) == 1
    assert "Traceback" in capsys.readouterr().err
    assert run(["two", "no-such"], HERE) == 2
    config.write_text("[two.words]\nno-such = 1\n")
    assert run(["two", "words", "m"], HERE) == 2
    assert "[two.words], but `swarm two words` has no option" in capsys.readouterr().err


def test_help_of_a_command_names_variables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "--help"], HERE) == 0
    printed = capsys.readouterr().out
    assert "SWARM_KV_CACHE_TOKENS" in printed
    assert "Show what arrived." in printed


def test_named_file_of_defaults_must_be_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["--config", str(tmp_path / "none.toml"), "show", "m"], HERE) == 2
    assert "there is no configuration file" in capsys.readouterr().err


def test_unknown_key_in_the_table_of_a_command_is_refused(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    config.write_text("[show]\nkv-cash-tokens = 2\n")
    assert run(["show", "m"], HERE) == 2
    assert "no option --kv-cash-tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "code", "sentence"),
    [
        ("model", 2, "swarm: there is no model called x and \ufffd[2Jno escape"),
        ("blocks", 1, "swarm: nobody holds blocks 1:3"),
        ("group", 1, "swarm: the daemon is gone"),
        ("memory", 1, "swarm: memory ran out (1 GB): free some, or ask this machine for less"),
        ("interrupt", 130, ""),
        ("interrupted group", 130, ""),
    ],
)
def test_error_is_one_line_and_a_code(capsys: pytest.CaptureFixture[str], kind: str, code: int, sentence: str) -> None:
    assert run(["fail", kind], HERE) == code
    assert capsys.readouterr().err.rstrip("\n") == sentence


def test_bug_is_not_dressed_as_an_error_of_the_user() -> None:
    with pytest.raises(ZeroDivisionError):
        run(["fail", "bug"], HERE)


def test_debug_shows_the_traceback_wherever_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for args in (["--debug", "fail", "blocks"], ["fail", "blocks", "--debug"]):
        assert run(args, HERE) == 1
        assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("SWARM_DEBUG", "1")
    assert run(["fail", "blocks"], HERE) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["nonsense"], ["show"], ["show", "m", "--no-such"], ["show", "m", "--json", "x"]])
def test_wrong_usage_is_two(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert run(args, HERE) == 2
    assert capsys.readouterr().out == ""


def test_typo_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sho"], HERE) == 2
    assert "Did you mean 'show'?" in capsys.readouterr().err


def test_module_that_is_not_installed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["absent"], HERE) == 2
    assert "clients.no_such_module" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_commands_options_and_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setenv("_SWARM_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    for words, expected in (
        ("swarm s", "status"),
        ("swarm status --in", "--initial-peers"),
        ("swarm bench wan --dra", "--draft-length"),
        ("swarm run smollm2-", "smollm2-1.7b"),
        ("swarm chat qwen3-0", "qwen3-0.6b"),
        ("swarm serve smollm2-", "smollm2-1.7b"),
    ):
        monkeypatch.setenv("COMP_WORDS", words)  # as bash says it,
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", words)  # and as the others do
        assert run([]) == 0
        assert expected in re.split(r'[\s"]+', capsys.readouterr().out), words


def commands() -> dict[str, Entry]:
    """All there are, those of two words too."""
    plain = {name: entry for name, entry in COMMANDS.items() if isinstance(entry, Entry)}
    groups = {name: group for name, group in COMMANDS.items() if isinstance(group, Group)}
    return plain | {f"{name} {sub}": entry for name, group in groups.items() for sub, entry in group.commands.items()}


@pytest.mark.parametrize("name", commands())
def test_command_is_there_and_explains_itself(name: str) -> None:
    command = load_command(name, commands()[name])
    assert command.help
    assert all(getattr(param, "help", None) for param in command.params)


def test_serve_has_an_entry_point_of_its_own() -> None:
    code = "import sys; sys.argv = ['swarm-serve', '--help']; from swarm.cli import serve_main; serve_main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert "swarm serve" in done.stdout
