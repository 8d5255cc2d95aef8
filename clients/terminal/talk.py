"""A chat: what is typed goes to the model, or is a /command about the chat itself."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clients.terminal.backend import Backend
from clients.terminal.conversation import Choosing, Conversation, load, save
from clients.terminal.screen import Screen, Stats, show
from swarm.errors import SwarmError, UsageError
from swarm.terminal import plain

__all__ = ["COMMANDS", "Talk"]


@dataclass(frozen=True, slots=True)
class Slash:
    """A command about the chat; `help` for the list."""

    act: Callable[["Talk", str], None]
    help: str
    takes: str = ""


class Talk:
    """`connect` gives the backend of another model, for /model. Used by one thread."""

    def __init__(
        self,
        backend: Backend,
        screen: Screen,
        *,
        connect: Callable[[str], Backend],
        conversation: Conversation,
        choosing: Choosing,
    ) -> None:
        self.backend = backend
        self.conversation = conversation
        self.choosing = choosing
        self.over = False
        self._screen = screen
        self._connect = connect
        self._stats: Stats | None = None
        self._answers = 0
        self._recoveries = 0

    def take(self, line: str) -> bool:
        """Do what was typed; whether it went well. What goes wrong is said on the screen, and the chat goes on."""
        try:
            if line.startswith("/"):
                name, _, rest = line[1:].partition(" ")
                self._command(name, rest.strip())
            elif line.strip():
                self._ask(line)
        except SwarmError as error:
            self._screen.say(plain(str(error)), style="red")
            return False
        return True

    def close(self) -> None:
        self.backend.close()

    # --- asking ---

    def _ask(self, question: str) -> None:
        """The question counts only when its answer has begun: what failed can simply be asked again."""
        asked = self.conversation.asked(question)
        stats, pieces = Stats(self._stats.chain if self._stats else None), list[str]()
        try:
            for piece in show(self.backend.answer(asked.messages, self.choosing), self._screen, stats):
                pieces.append(piece)
        except KeyboardInterrupt:
            self._screen.say("stopped")
        finally:
            self._stats = stats
            self._recoveries += stats.recoveries
            if pieces:
                self._answers += 1
                self.conversation = asked.answered("".join(pieces))
        if stats.ended is not None and stats.ended.reason == "length":
            self._screen.say("the answer was cut: /set max_new_tokens makes room for longer ones")

    # --- commands ---

    def _command(self, name: str, rest: str) -> None:
        fitting = [known for known in COMMANDS if known.startswith(name)] if name else []
        if name not in COMMANDS and len(fitting) != 1:
            said = (
                f"it could be {' or '.join('/' + each for each in fitting)}" if fitting else "/help lists what there is"
            )
            raise UsageError(f"there is no /{name}: {said}")
        COMMANDS[name if name in COMMANDS else fitting[0]].act(self, rest)

    def help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            self._screen.say(f"  {f'/{name} {command.takes}':<24}{command.help}")
        self._screen.say('  A line that ends in \\ goes on in the next one; """ begins and ends a text of many lines.')
        self._screen.say("  Ctrl-C stops an answer; at the prompt, Ctrl-C or Ctrl-D leaves.")

    def system(self, text: str) -> None:
        if text:
            system = "" if text == "none" else text
            self.conversation = Conversation(system, self.conversation.turns)
        self._screen.say(f"the model is told first: {plain(self.conversation.system) or '(nothing)'}")

    def clear(self, _: str) -> None:
        self.conversation = Conversation(self.conversation.system)
        self._screen.say("a new chat")

    def retry(self, _: str) -> None:
        before, question = self.conversation.undone()
        kept, self.conversation = self.conversation, before
        try:
            self._ask(question)
        finally:
            if self.conversation is before:  # no answer came
                self.conversation = kept

    def undo(self, _: str) -> None:
        self.conversation, question = self.conversation.undone()
        self._screen.say(f"taken back: {plain(question, 60)}")

    def save(self, text: str) -> None:
        path = _path(text)
        save(path, self.backend.model, self.conversation)
        self._screen.say(f"{len(self.conversation.turns)} messages are in {path}")

    def load(self, text: str) -> None:
        path = _path(text)
        self.conversation = load(path)
        self._screen.say(f"{len(self.conversation.turns)} messages from {path}")

    def set(self, text: str) -> None:
        if text:
            name, _, value = text.partition(" ")
            self.choosing = self.choosing.with_value(name, value.strip())
        self._screen.say(str(self.choosing))

    def model(self, name: str) -> None:
        if name and name != self.backend.model:
            other = self._connect(name)
            self.backend.close()
            self.backend, self._stats = other, None
        self._screen.say(f"you talk to {plain(self.backend.model)}")

    def chain(self, _: str) -> None:
        stats = self._stats
        if stats is None or stats.chain is None:
            self._screen.say("no chain was seen yet" if stats is None else "nobody told which chain it was")
            return
        self._screen.say(stats.chain_line())

    def stats(self, _: str) -> None:
        if self._stats is None:
            self._screen.say("nothing was answered yet")
            return
        self._screen.say(f"last answer: {self._stats.summary()}")
        self._screen.say(f"this chat: {self._answers} answers, {self._recoveries} chains mended")

    def exit(self, _: str) -> None:
        self.over = True


def _path(text: str) -> Path:
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if len(words) != 1:
        raise UsageError("give the name of one file, in quotes if it has blanks")
    return Path(words[0]).expanduser()


COMMANDS: Mapping[str, Slash] = {
    "help": Slash(Talk.help, "this list"),
    "system": Slash(Talk.system, "show or set what the model is told first; none for nothing", "[TEXT]"),
    "clear": Slash(Talk.clear, "forget what was said"),
    "retry": Slash(Talk.retry, "answer the last question once more"),
    "undo": Slash(Talk.undo, "take back the last question and its answer"),
    "save": Slash(Talk.save, "keep the chat as JSON", "FILE"),
    "load": Slash(Talk.load, "go on with a chat that was kept", "FILE"),
    "set": Slash(Talk.set, "how answers are chosen, as in /set temperature 0.7", "[NAME VALUE]"),
    "model": Slash(Talk.model, "show or change whom you talk to", "[NAME]"),
    "chain": Slash(Talk.chain, "the peers that computed the last answer, and their time"),
    "stats": Slash(Talk.stats, "how fast the last answer came"),
    "exit": Slash(Talk.exit, "leave"),
}
