"""What is typed in a chat, against a gateway that plays its answers."""

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from clients.events import ChainChanged
from clients.gateway.sse import DONE, SwarmComments
from clients.terminal.by_http import ByHttp
from clients.terminal.conversation import Choosing, Conversation
from clients.terminal.screen import LiveScreen, PlainScreen
from clients.terminal.talk import COMMANDS, Talk
from routing.chains import Hop
from swarm.errors import UsageError
from swarm.ids import PeerId, Span
from swarm.messages import Contact
from tests.clients.terminal.scripted import Said, Scripted, chunk, refusal, scripted, whole

ADA = Hop(Contact(PeerId("12D3-peer-of-ada"), ()), Span(0, 4), 0.1, name="ada")


class Chat:
    """Somebody who types; what the chat says is in `notes`."""

    def __init__(self, talk: Talk, server: Scripted, notes: io.StringIO) -> None:
        self.talk = talk
        self.server = server
        self._notes = notes

    def types(self, *lines: str) -> str:
        """What the chat itself says to the last of them."""
        for line in lines:
            self._notes.seek(0)
            self._notes.truncate()
            self.talk.take(line)
        return self._notes.getvalue()

    @property
    def said(self) -> list[str]:
        return [turn.content for turn in self.talk.conversation.turns]


Begin = Callable[..., Chat]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Begins a chat with a gateway that answers in these ways."""
    with ExitStack() as stack:

        def chat(*script: Said) -> Chat:
            server = stack.enter_context(scripted(*script))
            notes = io.StringIO()

            def connect(name: str) -> ByHttp:
                if name == "ghost":
                    raise UsageError("there is no ghost")
                return ByHttp(server.url, name, patience=0)

            screen = PlainScreen(Console(file=notes, width=200))
            talk = Talk(connect("tiny"), screen, connect=connect, conversation=Conversation(), choosing=Choosing())
            stack.callback(talk.close)
            return Chat(talk, server, notes)

        yield chat


def test_every_question_is_asked_with_what_was_said_before(begin: Begin, capsys: pytest.CaptureFixture[str]) -> None:
    chat = begin(whole("One.\n", "Two"), whole("Three"))
    chat.types("/system Be brief.", "Hi", "", "And?")
    assert capsys.readouterr().out == "One.\nTwo\nThree\n"
    assert chat.said == ["Hi", "One.\nTwo", "And?", "Three"]
    assert [message["content"] for message in chat.server.asked[1]["messages"]] == ["Be brief.", *chat.said[:3]]


def test_retry_undo_and_clear(begin: Begin) -> None:
    chat = begin(whole("a"), whole("b"), refusal(500, "oh"), whole("c"))
    assert "nothing was asked" in chat.types("/retry")
    chat.types("Hi", "/retry")
    assert chat.said == ["Hi", "b"]
    assert "failed: oh" in chat.types("/retry")
    assert chat.said == ["Hi", "b"]
    assert "taken back: Hi" in chat.types("/undo")
    assert chat.said == []
    chat.types("/system s", "Again", "/clear")
    assert chat.talk.conversation == Conversation("s")


def test_what_failed_can_be_asked_again_and_what_broke_off_is_kept(begin: Begin) -> None:
    broken = Said(chunk("Hel") + b'data: {"error": {"message": "a peer died"}}\n\n')
    chat = begin(refusal(400, "no"), broken)
    assert "refuses: no" in chat.types("Hi")
    assert chat.said == []
    assert "broke off: a peer died" in chat.types("Hi")
    assert chat.said == ["Hi", "Hel"]


def test_settings_models_and_files(begin: Begin, tmp_path: Path) -> None:
    chat = begin(whole("a"))
    assert "temperature 0.1" in chat.types("/set temperature 0.1")
    assert "is a number" in chat.types("/set temperature hot")
    assert chat.talk.choosing.temperature == 0.1
    assert "there is no ghost" in chat.types("/model ghost")
    assert "you talk to tiny" in chat.types("/model")
    chat.types("/model other", "Hi")
    assert chat.server.asked[-1]["model"] == "other"
    file = tmp_path / "my chat.json"
    assert "2 messages" in chat.types(f"/save '{file}'")
    assert "2 messages" in chat.types("/clear", f"/load '{file}'")
    assert chat.said == ["Hi", "a"]
    assert "give the name of one file" in chat.types("/save two files")


def test_chain_and_stats_are_shown(begin: Begin) -> None:
    comments = SwarmComments()
    first = Said(comments.of(ChainChanged((ADA,), (), 0.5, "begun")) + chunk("a") + chunk("b", "stop") + DONE)
    mended = Said(comments.of(ChainChanged((ADA,), (ADA.peer,), 0.5, "mended")) + chunk("c", "length") + DONE)
    chat = begin(first, whole("b"), mended)
    assert "no chain was seen yet" in chat.types("/chain")
    assert "nothing was answered" in chat.types("/stats")
    assert "ada 0:4" in chat.types("Hi", "/chain")
    assert "ada 0:4" in chat.types("Hi", "/chain")  # a chain that nobody had to change
    said = chat.types("Hi")
    assert "goes on along ada 0:4, after 500 ms" in said
    assert "/set max_new_tokens" in said
    assert "3 answers, 1 chains mended" in chat.types("/stats")


def test_commands_may_be_shortened_and_wrong_ones_are_named(begin: Begin) -> None:
    chat = begin(whole("a"))
    assert "/help lists" in chat.types("/nonsense")
    assert "could be /system or /save or /set or /stats" in chat.types("/s")
    assert all(f"/{name}" in chat.types("/h") for name in COMMANDS)
    chat.types("/ex")
    assert chat.talk.over


def test_terminal_shows_markdown_once_and_nothing_that_steers_it(begin: Begin) -> None:
    chat = begin(whole("# Ti", "tle\n\nSome *te", "xt*\x1b[2J.\n\n```\nx = 1\n", "```\n\nEnd"))
    out = io.StringIO()
    console = Console(file=out, width=60, height=20, force_terminal=True, force_interactive=False, color_system=None)
    talk = Talk(
        ByHttp(chat.server.url, None),
        LiveScreen(console),
        connect=ByHttp,
        conversation=Conversation(),
        choosing=Choosing(),
    )
    assert talk.take("Hi")
    talk.close()
    shown = out.getvalue()
    assert "\x1b[2J" not in shown
    for text in ("Title", "text", "\ufffd[2J", "x = 1", "End"):
        assert shown.count(text) == 1, shown
    assert "*" not in shown
