"""How families of models write tool calls into their text.

Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, anywhere in the text.
Llama 3: `{"name": …, "parameters": {…}}` as the whole answer.
Mistral: `[TOOL_CALLS][{"name": …, "arguments": {…}}]` after the text; since 2025, `[TOOL_CALLS]name[ARGS]{…}` for each.
"""

from dataclasses import dataclass
from enum import Enum

__all__ = ["FORMATS", "HERMES", "LLAMA", "MISTRAL", "MISTRAL_NAMED", "Format", "Way", "format_of"]


class Way(Enum):
    """Where calls stand in a text, and what holds them together."""

    TAGGED = "tagged"  # each an object between two tags
    LISTED = "listed"  # a list of objects after a marker
    NAMED = "named"  # a marker, a name and the arguments
    BARE = "bare"  # an object that is the whole answer


@dataclass(frozen=True, slots=True)
class Format:
    """`key` is the name of the arguments in a call's object, or the marker before them."""

    way: Way
    begin: str
    key: str
    end: str = ""
    several: bool = True  # calls in one answer
    id_length: int | None = None  # letters and digits of a call's id, where chat templates insist on a number

    @property
    def markers(self) -> tuple[str, ...]:
        """What may be special tokens, and must stay when an answer becomes text."""
        texts = (self.begin, self.end, self.key if self.way is Way.NAMED else "")
        return tuple(text for text in texts if text)


HERMES = Format(Way.TAGGED, "<tool_call>", "arguments", "</tool_call>")
LLAMA = Format(Way.BARE, "<|python_tag|>", "parameters", several=False)
MISTRAL = Format(Way.LISTED, "[TOOL_CALLS]", "arguments", id_length=9)
MISTRAL_NAMED = Format(Way.NAMED, "[TOOL_CALLS]", "[ARGS]", id_length=9)
FORMATS = (HERMES, LLAMA, MISTRAL, MISTRAL_NAMED)


def format_of(template: str) -> Format | None:
    """The format of calls in chats as `template` renders them; None for one that is not read here, or none at all."""
    if "<function=" in template or "<arg_key>" in template:  # arguments as XML
        return None
    if "[TOOL_CALLS]" in template:
        return MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    if "<tool_call>" in template:
        return HERMES
    if "<|python_tag|>" in template or "ipython" in template:  # the role of results
        return LLAMA
    return None
