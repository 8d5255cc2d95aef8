"""Tool calls out of an answer, as its text comes.

Models write calls into their text, each family in its own way (`tool_formats.py`). A call is the same however the text
was cut: the routines below are generators that ask for one character after the other; "" is the end of the text.
"""

import json
from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass
from itertools import groupby

from clients.gateway.tool_formats import Format, Way

__all__ = ["Arguments", "CallReader", "Called", "Piece", "Said"]

MOST_NAME = 256  # characters of a tool's name
MOST_BLANKS = 64  # white space that is held back because a call may follow it

_Steps = Generator[None, str, None]
_Check = Generator[None, str, bool]
_Text = Generator[None, str, str]
_Maybe = Generator[None, str, str | None]


@dataclass(frozen=True, slots=True)
class Said:
    """Text of the answer that belongs to no call."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A call begins. `index` counts the calls of one answer from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the arguments of call `index`: JSON, as the model wrote it."""

    index: int
    text: str


Piece = Said | Called | Arguments


class CallReader:
    """Takes the text of one answer and gives its pieces."""

    def __init__(self, way: Format, names: Collection[str]) -> None:
        """`names`: the tools there are. Where calls are bare JSON, only an object that names one of them is a call."""
        self._format = way
        self._names = names
        self._pieces: list[Piece] = []
        self._back: list[str] = []  # characters to be read again, the next one last
        self._record: list[str] | None = None  # what has been read since a call seemed to begin
        self._ended = False
        self._calls = 0
        self._name = ""  # of the call that is being read, once known
        self._held: list[str] = []  # arguments that came before it
        self._told = False  # whether there were arguments
        self._reading = self._answer()
        next(self._reading)

    @property
    def calls(self) -> int:
        """Calls that have begun so far."""
        return self._calls

    def feed(self, text: str) -> list[Piece]:
        """What `text` adds. What may yet become a call is held back."""
        for character in text:
            self._reading.send(character)
        return self._taken()

    def close(self) -> list[Piece]:
        """What was held back, at the end of the answer."""
        self._ended = True
        self._reading.send("")
        return self._taken()

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return _joined(pieces)

    # --- characters ---

    def _next(self) -> _Text:
        character = self._back.pop() if self._back else "" if self._ended else (yield)
        if self._record is not None and character:
            self._record.append(character)
        return character

    def _return(self, text: str) -> None:
        """The last characters read, `text`, are to be read again."""
        if self._record is not None:
            del self._record[len(self._record) - len(text) :]
        self._back.extend(reversed(text))

    def _begin_record(self, text: str) -> None:
        self._record = list(text)

    def _say_record(self) -> None:
        """It was no call after all."""
        self._say("".join(self._record or ()))

    def _say(self, text: str) -> None:
        if text:
            self._pieces.append(Said(text))

    def _solid(self) -> _Text:
        """The next character that is no white space."""
        while (character := (yield from self._next())).isspace():
            pass
        return character

    def _match(self, text: str) -> _Check:
        """Whether `text` follows, after white space; what is read is returned if it does not."""
        blanks = ""
        while (character := (yield from self._next())).isspace():
            blanks += character
        seen = character
        while text.startswith(seen) and seen != text and character:
            character = yield from self._next()
            seen += character
        if seen != text:
            self._return(blanks + seen)
        return seen == text

    # --- answers ---

    def _answer(self) -> _Steps:
        match self._format.way:
            case Way.TAGGED:
                yield from self._tagged()
            case Way.LISTED | Way.NAMED:
                yield from self._marked()
            case Way.BARE:
                yield from self._bare()
        yield from self._rest()
        yield  # so that the end of the text is an answer's last step

    def _tagged(self) -> _Steps:
        while (yield from self._text_until(self._format.begin)):
            self._begin_record(self._format.begin)
            if (yield from self._call()):
                yield from self._match(self._format.end)
            else:
                self._say_record()

    def _marked(self) -> _Steps:
        while (yield from self._text_until(self._format.begin)):
            self._begin_record(self._format.begin)
            if (yield from self._match("[")):
                called = yield from self._listed()
            else:
                called = yield from self._named()
            if not called:
                self._say_record()

    def _bare(self) -> _Steps:
        """Calls at the very beginning of an answer; what follows them is text."""
        self._begin_record("")
        yield from self._match(self._format.begin)
        while (yield from self._match("{")):
            self._return("{")
            if not (yield from self._call()):
                break
            self._begin_record("")
            yield from self._match(";")
        self._say_record()

    def _rest(self) -> _Steps:
        """What follows the calls, without white space at its end."""
        self._record = None
        held = ""
        while character := (yield from self._next()):
            held += character
            if not character.isspace():
                self._say(held)
                held = ""
        if not self._calls:
            self._say(held)

    def _text_until(self, marker: str) -> _Check:
        """Tells text up to `marker`, without the white space before it; whether there is one."""
        self._record = None
        held = ""
        while character := (yield from self._next()):
            held += character
            while len(held) > len(marker) + MOST_BLANKS or not marker.startswith(held.lstrip()):
                self._say(held[0])
                held = held[1:]
            if held.lstrip() == marker:
                return True
        if not (self._calls and held.isspace()):
            self._say(held)
        return False

    # --- calls; each says whether one began ---

    def _listed(self) -> _Check:
        """`[{…}, {…}]`, after the bracket."""
        begun = self._calls
        while (yield from self._call()):
            if not (yield from self._match(",")):
                yield from self._match("]")
                break
        return self._calls > begun

    def _named(self) -> _Check:
        """`name{…}`, with markers in brackets between the two."""
        name, self._held = "", []
        while (character := (yield from self._next())) not in ("", "{", "[") and len(name) < MOST_NAME:
            name += character
        while character == "[":
            while (character := (yield from self._next())) not in ("", "]"):
                pass
            while (character := (yield from self._next())) not in ("", "{", "["):
                pass  # the id of a call, which is the model's own affair
        if character != "{" or not self._start(name.strip()):
            return False
        yield from self._object()
        return True

    def _call(self) -> _Check:
        """`{"name": …, "arguments": {…}}`, its members in any order."""
        self._name = ""
        self._held = []
        if (yield from self._solid()) != "{":
            return False
        separator = ","
        while separator == ",":
            if not (yield from self._member((yield from self._key()))):
                break
            separator = yield from self._solid()
        if self._name and not self._told and separator == "}":
            self._argue("{}")
        return self._name != ""

    def _member(self, key: str | None) -> _Check:
        """One member of a call's object; whether it may go on."""
        if key in ("arguments", "parameters"):
            yield from self._arguments()
            return True
        if key not in ("name", "type", "id"):
            return False
        value = yield from self._string((yield from self._solid()))
        if key != "name":
            return value is not None
        return not self._name and value is not None and self._start(value)

    def _start(self, name: str) -> bool:
        """A call of this name begins, if it can be one."""
        known = name in self._names or self._format.way is not Way.BARE
        if not (known and name.isprintable() and 0 < len(name) <= MOST_NAME):
            return False
        self._name = name
        self._pieces.append(Called(self._calls, name))
        self._calls += 1
        held, self._held, self._told = self._held, [], False
        for text in held:
            self._argue(text)
        return True

    def _argue(self, text: str) -> None:
        """More arguments; held until it is known whose they are."""
        if self._name:
            self._told = True
            self._pieces.append(Arguments(self._calls - 1, text))
        else:
            self._held.append(text)

    def _key(self) -> _Maybe:
        key = yield from self._string((yield from self._solid()))
        return key if (yield from self._solid()) == ":" else None

    def _string(self, quote: str) -> _Maybe:
        """A JSON string that begins with `quote`; None where it is none."""
        if quote != '"':
            return None
        text = yield from self._quoted()
        try:
            return str(json.loads(text, strict=False)).encode(errors="replace").decode()
        except ValueError:
            return None

    def _quoted(self) -> _Text:
        """The rest of a JSON string, quotes included."""
        text = '"'
        while character := (yield from self._next()):
            text += character
            if character == "\\":
                text += yield from self._next()
            elif character == '"':
                break
        return text

    def _arguments(self) -> _Steps:
        """A JSON value. Some models write the object as a string; anything else is no arguments."""
        character = yield from self._solid()
        if character == "{":
            yield from self._object()
        elif character == '"':
            self._argue((yield from self._string(character)) or "{}")
        else:
            while character and character not in ",}":
                character = yield from self._next()
            self._return(character)
            self._argue("{}")

    def _object(self) -> _Steps:
        """A JSON object after its first brace, told character by character."""
        self._argue("{")
        depth = 1
        while depth and (character := (yield from self._next())):
            if character == '"':
                yield from self._told_string()
                continue
            depth += (character in "{[") - (character in "}]")
            self._argue(character)

    def _told_string(self) -> _Steps:
        self._argue('"')
        while character := (yield from self._next()):
            self._argue(character)
            if character == "\\":
                self._argue((yield from self._next()))
            elif character == '"':
                break


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours of one kind and one call as one piece."""
    joined: list[Piece] = []
    for (kind, index), group in groupby(pieces, lambda piece: (type(piece), getattr(piece, "index", None))):
        if kind is Called:
            joined += group
            continue
        text = "".join(piece.text for piece in group if not isinstance(piece, Called))
        joined.append(Said(text) if index is None else Arguments(index, text))
    return joined
