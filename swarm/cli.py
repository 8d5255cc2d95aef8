"""The front door: the `swarm` command. Commands are loaded by name when they run, so that help needs no floor above.

Exit codes: 0 done, 1 a SwarmError while it ran, 2 wrong usage (an option, a file, a name), 130 interrupted, 143 told to
stop by SIGTERM.
"""

import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from swarm.errors import SwarmError, UsageError
from swarm.settings import config_path, defaults_for, read_config
from swarm.terminal import plain
from swarm.version import __version__

__all__ = ["COMMANDS", "Entry", "Group", "config_trouble", "load_command", "main", "run", "serve_main"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: where its function is, as `module:function`, and what the list of commands says of it."""

    target: str
    help: str
    lenient: bool = False  # runs although the file of defaults can't be used, and says so itself


@dataclass(frozen=True, slots=True)
class Group:
    """Commands that go by two words, such as `swarm bench wan`."""

    help: str
    commands: Mapping[str, Entry]


COMMANDS: Mapping[str, Entry | Group] = {
    "serve": Entry("peers.serve:serve", "Serve blocks of a model to the swarm."),
    "run": Entry("clients.run:run", "Generate an answer to a prompt with the peers of a swarm."),
    "chat": Entry("clients.terminal.command:chat", "Chat with a model that the peers of a swarm compute."),
    "gateway": Entry("clients.gateway.command:gateway", "Serve a chat page and the OpenAI API, computed by a swarm."),
    "status": Entry("clients.status:status", "Show which peers hold which blocks, and how they are."),
    "invite": Entry("clients.access:invite", "Make an invite to your private swarm."),
    "revoke": Entry("clients.access:revoke", "Take an invite to your private swarm back."),
    "pause": Entry("clients.terminal.pause:pause", "Have peers on this machine take no sessions for a while."),
    "resume": Entry("clients.terminal.pause:resume", "Have paused peers on this machine go on."),
    "ps": Entry("clients.terminal.ps:ps", "List the peers and gateways that run on this machine."),
    "list": Entry("clients.terminal.listing:list_models", "List the models that are on this machine."),
    "pull": Entry("clients.terminal.pull:pull", "Fetch a model, or the part of it that a peer needs, beforehand."),
    "doctor": Entry(
        "clients.doctor.command:doctor",
        "Check this machine and its way into a swarm, and say what to do.",
        lenient=True,
    ),
    "finetune": Entry("clients.finetune.command:finetune", "Train an adapter of your own over the blocks of a swarm."),
    "demo": Entry("clients.demo:demo", "Start a small swarm on this machine, use it, and kill a peer in mid-answer."),
    "bench": Group(
        "Measure a swarm, or a part of it, beside the least that it could take.",
        {
            "local": Entry("clients.bench.command:local", "A model in one process, without a swarm."),
            "peer": Entry("peers.bench:peer", "One peer's span, without a network."),
            "swarm": Entry("clients.bench.command:swarm", "A swarm on this machine against the model in one process."),
            "train": Entry("clients.bench.command:train", "Fine-tuning through a swarm on this machine."),
            "gateway": Entry(
                "clients.bench.command:gateway", "A gateway against the Python client, over the same peers."
            ),
            "failures": Entry(
                "clients.bench.failures_command:failures", "A session whose peers fail, beside doing without mending."
            ),
            "wan": Entry("clients.bench.command:wan", "A swarm whose peers are far from each other, played here."),
        },
    ),
}

EPILOG = (
    "An option that is not given comes from the environment variable of its name (--kv-cache-tokens is "
    "SWARM_KV_CACHE_TOKENS), else from the file of defaults (config.toml in ~/.config/swarm, or in "
    "$XDG_CONFIG_HOME/swarm; --config names another), else from its default. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."
)
DEBUG = "debug"  # a parameter that every command has


@dataclass(slots=True)
class Invocation:
    """What one call of the command line knows before it runs; handed down as the context's object."""

    commands: Mapping[str, Entry | Group]
    debug: bool = False


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"swarm {__version__}")
        raise typer.Exit


def _set_debug(context: typer.Context, value: bool) -> None:
    if isinstance(context.obj, Invocation):
        context.obj.debug |= value


class LazyGroup(TyperGroup):
    """Lists placeholders; loads the real command, its variables and its defaults only when it is the one that runs."""

    entries: Mapping[str, Entry | Group]  # set by whoever makes it

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, found, rest = super().resolve_command(ctx, args)
        if name is None or not isinstance(ctx.obj, Invocation):
            return name, found, rest
        entry = self.entries[name]
        if isinstance(entry, Group):
            return name, _group(entry), rest
        path = " ".join([*ctx.command_path.split()[1:], name])
        command = load_command(path, entry)
        root = ctx.find_root()
        if not ctx.resilient_parsing:  # completion asks for names alone
            ctx.default_map = {name: _defaults(path, command, root.params["config"], ctx.obj, entry.lenient)}
        command.params.extend(param for param in root.command.params if param.name == DEBUG)
        return name, command, rest


def load_command(name: str, entry: Entry) -> TyperCommand:
    """The command of `entry`, imported. Raises UsageError when something that it needs is not installed."""
    module, _, function = entry.target.partition(":")
    try:
        callback = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"`swarm {name}` needs the Python module {error.name}, which is not installed: install swarm-peers again"
        ) from error
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    app.command(name.rpartition(" ")[2], help=callback.__doc__ or entry.help, epilog=EPILOG)(callback)
    command = typer.main.get_command(app)
    if not isinstance(command, TyperCommand):
        raise TypeError(f"{entry.target} is no command")
    for option, flag in _long_options(command):
        option.envvar = option.envvar or f"SWARM_{flag.replace('-', '_').upper()}"
    return command


def _long_options(command: TyperCommand) -> list[tuple[TyperOption, str]]:
    """The options of a command with their first long names, without dashes."""
    options = [param for param in command.params if isinstance(param, TyperOption)]
    names = ([name[2:] for name in option.opts if name.startswith("--")] for option in options)
    return [(option, long[0]) for option, long in zip(options, names, strict=True) if long]


def _defaults(
    name: str, command: TyperCommand, given: Path | None, invocation: Invocation, lenient: bool
) -> dict[str, Any]:
    path = given or config_path(os.environ, Path.home())
    flags = {flag: str(option.name) for option, flag in _long_options(command)}
    try:
        config = read_config(path, required=given is not None, commands=tuple(invocation.commands))
        return defaults_for(name, flags, config, path)
    except UsageError:
        if not lenient:
            raise
        return {}


def config_trouble(given: Path | None, commands: Mapping[str, Entry | Group]) -> str | None:
    """What is wrong with the file of defaults, for any of the `commands`; None when nothing is."""
    path = given or config_path(os.environ, Path.home())
    try:
        config = read_config(path, required=given is not None, commands=tuple(commands))
        for name, entry in commands.items():
            for words, one in [(name, entry)] if isinstance(entry, Entry) else _named(name, entry):
                if name in config:
                    flags = {flag: flag for _, flag in _long_options(load_command(words, one))}
                    defaults_for(words, flags, config, path)
    except UsageError as error:
        return str(error)
    return None


def _named(name: str, group: Group) -> list[tuple[str, Entry]]:
    return [(f"{name} {word}", entry) for word, entry in group.commands.items()]


def swarm(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            help="Show the Python traceback of an error.",
            envvar="SWARM_DEBUG",
            callback=_set_debug,
            expose_value=False,
        ),
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="A file of defaults.", envvar="SWARM_CONFIG", metavar="FILE")
    ] = None,
) -> None:
    """Strangers' machines together run language models that none of them could hold."""


def _placeholder() -> None:
    """Stands in the list of commands for one that is not loaded."""


def _front_door(commands: Mapping[str, Entry | Group]) -> TyperGroup:
    app = typer.Typer(cls=LazyGroup, epilog=EPILOG, rich_markup_mode="markdown", no_args_is_help=True)
    app.callback()(swarm)
    return _with_placeholders(app, commands)


def _group(group: Group) -> TyperGroup:
    app = typer.Typer(cls=LazyGroup, help=group.help, no_args_is_help=True, add_completion=False)
    app.callback()(lambda: None)
    return _with_placeholders(app, group.commands)


def _with_placeholders(app: typer.Typer, commands: Mapping[str, Entry | Group]) -> TyperGroup:
    for name, entry in commands.items():
        app.command(name, help=entry.help)(_placeholder)
    made = typer.main.get_command(app)  # and not get_group, which leaves out the options for shell completion
    if not isinstance(made, LazyGroup):
        raise TypeError("a front door without commands")
    made.entries = commands
    return made


def run(args: Sequence[str], commands: Mapping[str, Entry | Group] = COMMANDS) -> int:
    """Run one command line and return its exit code; an error is one line on stderr."""
    invocation = Invocation(commands)
    try:
        _front_door(commands).main(args=list(args), prog_name="swarm", obj=invocation)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except (SwarmError, MemoryError, BaseExceptionGroup) as error:
        return _report(error, invocation.debug)
    return 0


def _report(error: BaseException, debug: bool) -> int:
    """Say what went wrong and return the exit code. Raises `error` again when it is none that we raise on purpose."""
    leaves = _leaves(error)
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return 130
    if not all(isinstance(leaf, SwarmError | MemoryError) for leaf in leaves):
        raise error
    if debug:
        traceback.print_exception(error)
    short = f"memory ran out ({leaves[0]}): free some, or ask this machine for less"
    typer.echo(f"swarm: {short if isinstance(leaves[0], MemoryError) else plain(str(leaves[0]))}", err=True)
    return 2 if isinstance(leaves[0], UsageError) else 1


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _clean_up_when_told() -> None:
    """SIGTERM, and SIGHUP unless it is ignored as under nohup, end a command as Ctrl-C does: what it started ends too.
    `swarm serve` replaces these by its own."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """The entry point `swarm`."""
    _clean_up_when_told()
    sys.exit(run(sys.argv[1:]))


def serve_main() -> None:
    """The entry point `swarm-serve`: the same as `swarm serve`."""
    _clean_up_when_told()
    sys.exit(run(["serve", *sys.argv[1:]]))
