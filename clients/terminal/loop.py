"""The loop of a chat: read, answer, read again; and what Ctrl-C and the end of input mean."""

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from clients.terminal.backend import Backend
from clients.terminal.conversation import Choosing, Conversation
from clients.terminal.reading import Lines, history
from clients.terminal.screen import LiveScreen, PlainScreen, Screen
from clients.terminal.talk import COMMANDS, Talk
from swarm.terminal import plain

__all__ = ["converse"]


def converse(
    begin: Callable[[], Backend],
    connect: Callable[[str], Backend],
    conversation: Conversation,
    choosing: Choosing,
    kept: Path,
) -> int:
    """The exit status: 1 when the last thing that was asked failed and nobody was there to ask again. `kept`: the file
    of what was typed in earlier chats. Raises SwarmError when there is nobody to talk to."""
    typed = sys.stdin.isatty()
    screen = _screen()
    backend = begin()
    talk = Talk(backend, screen, connect=connect, conversation=conversation, choosing=choosing)
    try:
        if typed:
            screen.say(f"{plain(backend.model)} · /help lists commands, Ctrl-D leaves")
            with history(kept, [f"/{name}" for name in COMMANDS]):
                return _converse(talk, Lines(prompts=True), typed=True)
        return _converse(talk, Lines(prompts=False), typed=False)
    finally:
        talk.close()


def _converse(talk: Talk, lines: Lines, *, typed: bool) -> int:
    well = True
    while not talk.over:
        try:
            line = lines.next()
        except KeyboardInterrupt:
            print()
            return 130
        if line is None:
            if typed:
                print()
            break
        well = talk.take(line)
    return 0 if well or typed else 1


def _screen() -> Screen:
    if sys.stdout.isatty():
        return LiveScreen(Console(highlight=False))
    return PlainScreen(Console(stderr=True, highlight=False, soft_wrap=True, quiet=not sys.stderr.isatty()))
