"""Several devices by one command: a peer of the swarm for each, so that blocks, keys, load and failures are the
device's own and the swarm sees each as it is.

Each peer is an ordinary `swarm serve` in a process of its own. This one starts them, shows what they say, hands on what
it is told, and outlives them. A child leaves when its standard input ends, so that even a SIGKILL leaves none behind.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import typer
from typer.core import TyperOption

from peers.settings import ServeSettings
from peers.words import read_lines
from swarm.entrance import HIGHEST_PORT, announced_addresses
from swarm.errors import UsageError
from swarm.ids import Span
from swarm.running import PAUSE, RESUME, running

__all__ = ["Options", "Several", "from_here", "same_command", "share_out"]

Options: TypeAlias = Mapping[str, object]  # of `swarm serve`, by the names of its parameters; None: not given

GLANCE_SECONDS = 0.2  # between two looks at whether the first peer of a new swarm serves
LONGEST_LINE = 1 << 20  # bytes
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
WRONG_USAGE = 2  # exit status

_log = logging.getLogger(__name__)


# --- one device's share ----------------------------------------------------------------------------------------------


def share_out(
    settings: ServeSettings, announce: Sequence[str], devices: Sequence[str], *, cores: int, memory: int
) -> list[Options]:
    """What the peer of each of the `devices` is told instead of what was given for all of them.

    Ports and identities are numbered, blocks are shared out. What was not given is shared where peers would get in each
    other's way: `cores`, and, between peers on the CPU that take as many blocks as fit, `memory` in bytes. `announce`
    as given. Raises UsageError.
    """
    count, cpus = len(devices), devices.count("cpu")
    _check_ports(settings, announce, count)
    spans, numbers = _spans(settings.blocks, count), _numbers(settings.num_blocks, count)
    fits = cpus > 1 and not (settings.max_memory or settings.blocks or settings.num_blocks)
    shares: list[Options] = []
    for index, device in enumerate(devices):
        share: dict[str, object] = {
            "device": device,
            "port": settings.port + index if settings.port else settings.port,
            "identity_path": _numbered(settings.identity, index),
            "blocks": spans[index],
            "num_blocks": numbers[index],
            "max_memory": _size(settings.max_memory if device == "cpu" or not cpus else None),
            "max_vram": _size(settings.max_vram if device != "cpu" or cpus == count else None),
            "threads": settings.threads or max(1, cores // count),
            "stop_with_stdin": True,
        }
        if fits and device == "cpu":
            share["max_memory"] = f"{memory // cpus}B"
        shares.append(share)
    return shares


def _check_ports(settings: ServeSettings, announce: Sequence[str], count: int) -> None:
    if settings.port and settings.port + count - 1 > HIGHEST_PORT:
        raise UsageError(
            f"--port {settings.port}: {count} devices take as many ports from there, and the last is {HIGHEST_PORT}"
        )
    if not announce:
        return
    port = settings.port or 0
    if not port or set(announced_addresses(announce, port)) & set(announced_addresses(announce, port + 1)):
        raise UsageError(
            "--announce: each device's peer has a port of its own: give an IP address alone, and --port N, from which "
            "they are counted"
        )


def _spans(blocks: Span | None, count: int) -> list[Span | None]:
    if blocks is None:
        return [None] * count
    spans: list[Span | None] = []
    start = blocks.start
    for number in _shared(len(blocks), count, f"--blocks {blocks}"):
        spans.append(Span(start, start + number))
        start += number
    return spans


def _numbers(blocks: int | None, count: int) -> list[int] | list[None]:
    return [None] * count if blocks is None else _shared(blocks, count, f"--num-blocks {blocks}")


def _shared(blocks: int, count: int, option: str) -> list[int]:
    if blocks < count:
        raise UsageError(
            f"{option}: {count} devices share these blocks, one each at least: give more, or fewer devices"
        )
    return [blocks // count + (index < blocks % count) for index in range(count)]


def _size(size: int | None) -> str | None:
    return None if size is None else f"{size}B"


def _numbered(identity: Path | None, index: int) -> Path | None:
    """As identities of the data folder are."""
    return identity.with_name(f"{identity.name}-{index + 1}") if identity is not None and index else identity


def same_command(context: typer.Context, instead: Options) -> list[str]:
    """The command line of `context` again, but for `instead`. An option that comes from elsewhere is left to be read
    from there again: it may be a secret, which others would see on a command line."""
    root = context.find_root()
    config = root.params.get("config")
    values = {name: value for name, value in context.params.items() if _on_the_command_line(context, name)}
    words = [
        *(sys.executable, "-m", "swarm"),
        *(["--debug"] if getattr(context.obj, "debug", False) else []),
        *([f"--config={config}"] if config else []),
        "serve",
    ]
    arguments = []
    for param in context.command.params:
        value = {**values, **instead}.get(str(param.name))
        if value is None or value is False:
            continue
        if not isinstance(param, TyperOption):
            arguments.append(str(value))
        elif value is True:
            words.append(param.opts[0])
        else:
            words += [f"{param.opts[0]}={one}" for one in (value if isinstance(value, list | tuple) else [value])]
    return [*words, "--", *arguments]


def _on_the_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def from_here(address: str, settings: ServeSettings) -> str:
    """Where this machine reaches a peer of these settings that is announced at `address`. What its user announces is
    for others: a router may not lead back from here."""
    if not settings.announce:
        return address
    (own,) = announced_addresses([WILDCARDS.get(settings.host, settings.host)], settings.port)
    return f"{own}/p2p/{address.rpartition('/p2p/')[2]}"


# --- all of them -----------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Child:
    """One device's peer. `label`: the device, numbered where there are several of it."""

    label: str
    options: Options
    process: asyncio.subprocess.Process | None = None  # while it runs

    def tell(self, number: signal.Signals) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):  # it has just ended
                self.process.send_signal(number)


class Several:
    """`run` it; `status` is what the command ends with then. `command` makes the words that start a peer; `state`: the
    folder of `swarm.running`."""

    def __init__(
        self,
        settings: ServeSettings,
        shares: Sequence[Options],
        command: Callable[[Options], Sequence[str]],
        state: Path,
    ) -> None:
        self._settings = settings
        self._command = command
        self._state = state
        devices = [str(share["device"]) for share in shares]
        self._children = [_Child(_label(devices, index), dict(share)) for index, share in enumerate(shares)]
        self._leaving = False
        self._failures: list[int] = []  # exit statuses
        self._way_in: str | None = None  # to a new swarm
        self._begun = asyncio.Event()  # it, or nobody ever will

    @property
    def status(self) -> int:
        """0, unless a peer failed: then 2 if wrong options were all that failed, else 1."""
        if not self._failures:
            return 0
        return WRONG_USAGE if set(self._failures) == {WRONG_USAGE} else 1

    async def run(self) -> None:
        """Until all have ended. Cancelling it tells them to leave, and cancelling it again to do so at once; it still
        waits for them. Raises UsageError."""
        if self._settings.new_swarm:
            self._check_state()
        lives = {asyncio.create_task(self._live(child), name=child.label) for child in self._children}
        told: asyncio.CancelledError | None = None
        waiting = lives
        with self._handing_on(PAUSE, RESUME):
            while waiting:
                try:
                    _, waiting = await asyncio.wait(waiting)
                except asyncio.CancelledError as error:
                    told = error
                    self._leave()
        for life in lives:
            life.result()
        if told is not None:
            raise told

    def _leave(self) -> None:
        self._leaving = True
        self._begun.set()
        for child in self._children:
            child.tell(signal.SIGTERM)

    async def _live(self, child: _Child) -> None:
        first, options = child is self._children[0], dict(child.options)
        if self._settings.new_swarm and not first:
            await self._begun.wait()
            if self._way_in is None:
                return
            options |= {"new_swarm": None, "initial_peers": [self._way_in]}
        if self._leaving:
            return
        child.process = process = await asyncio.create_subprocess_exec(
            *self._command(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C goes to all that a terminal has started, and twice would be at once
        )
        if self._leaving:  # since it was being started
            child.tell(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(_show(process.stdout, sys.stdout.buffer, child.label))
            group.create_task(_show(process.stderr, sys.stderr.buffer, child.label))
            if self._settings.new_swarm and first:
                group.create_task(self._find_way(process))
        status = await process.wait()
        child.process = None
        self._note_end(child, status)

    def _note_end(self, child: _Child, status: int) -> None:
        if self._leaving:
            return
        left = [other.label for other in self._children if other.process is not None]
        rest = f"; {', '.join(left)} goes on" if len(left) == 1 else f"; {', '.join(left)} go on" if left else ""
        if status == 0:
            _log.info("the peer on %s has left%s", child.label, rest)
            return
        self._failures.append(status)
        why = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"has ended with exit status {status}"
        _log.error("the peer on %s %s%s", child.label, why, rest)

    # --- a new swarm --------------------------------------------------------------------------------------------

    def _check_state(self) -> None:
        """Nobody would ever hear that the first peer serves."""
        folder = self._state / "running"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{folder} can't be made, where peers of several devices find each other: {error}"
            ) from error
        if not os.access(folder, os.W_OK):
            raise UsageError(
                f"{folder} can't be written, where peers of several devices find each other: mend its mode"
            )

    async def _find_way(self, process: asyncio.subprocess.Process) -> None:
        """Where the peer that begins the swarm can be joined, once it serves."""
        while process.returncode is None and self._way_in is None:
            notes = (note for note in running(self._state) if note.pid == process.pid)
            self._way_in = next((from_here(note.address, self._settings) for note in notes if note.address), None)
            await asyncio.sleep(GLANCE_SECONDS)
        self._begun.set()

    # --- pausing ------------------------------------------------------------------------------------------------

    @contextmanager
    def _handing_on(self, *numbers: signal.Signals) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in numbers:
            loop.add_signal_handler(number, self._hand_on, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _hand_on(self, number: signal.Signals) -> None:
        """To those that serve, as `swarm pause` does; a process that has only been started would die of it."""
        serving = {note.pid for note in running(self._state)}
        for child in self._children:
            if child.process is not None and child.process.pid in serving:
                child.tell(number)


def _label(devices: Sequence[str], index: int) -> str:
    before = devices[:index].count(devices[index])
    return f"{devices[index]}-{before + 1}" if before else devices[index]


async def _show(words: asyncio.StreamReader, out: IO[bytes], label: str) -> None:
    """A reader that went away is no reason to end."""
    async for line in read_lines(words, LONGEST_LINE):
        with suppress(OSError, ValueError):
            out.write(_labelled(line, label) + b"\n")
            out.flush()


def _labelled(line: bytes, label: str) -> bytes:
    """A JSON object has one field more, `on`; before any other line the device is named."""
    if line.startswith(b"{") and line.endswith(b"}"):
        return line[:-1] + f', "on": {json.dumps(label)}}}'.encode()
    return f"[{label}] ".encode() + line
