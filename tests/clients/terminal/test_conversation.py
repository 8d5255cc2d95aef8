import json
from pathlib import Path

import pytest

from clients.terminal.conversation import Choosing, Conversation, Message, load, save
from swarm.errors import UsageError

CHAT = Conversation("Be brief.").asked("Hi").answered("Hello").asked("And?").answered("Nothing.")


def test_undoing_takes_back_the_last_question_and_its_answer() -> None:
    before, question = CHAT.undone()
    assert question == "And?"
    assert before == Conversation("Be brief.").asked("Hi").answered("Hello")
    with pytest.raises(UsageError, match="nothing was asked"):
        Conversation("Be brief.").undone()


def test_chat_that_was_saved_is_loaded_as_it_was(tmp_path: Path) -> None:
    save(tmp_path / "chat.json", "smollm2", CHAT)
    assert load(tmp_path / "chat.json") == CHAT
    found = json.loads((tmp_path / "chat.json").read_text())
    assert found["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (found["model"], len(found["messages"])) == ("smollm2", 5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("no json", "holds no chat"),
        ("[1]", "holds no chat"),
        ('{"messages": 3}', "holds no chat"),
        ('{"messages": [{"role": "cook", "content": "x"}]}', "a message that is none"),
        ('{"messages": [{"role": "user", "content": 5}]}', "a message that is none"),
        ("[" * 100_000, "holds no chat"),
    ],
)
def test_file_that_is_no_chat_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        load(tmp_path / "x")


def test_file_that_is_not_there_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        load(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't be written"):
        save(tmp_path / "file" / "chat", "m", CHAT)


def test_values_are_set_by_their_names() -> None:
    choosing = Choosing().with_value("temperature", "0").with_value("max-new-tokens", "5").with_value("seed", "7")
    assert choosing == Choosing(temperature=0, max_new_tokens=5, seed=7)
    assert choosing.with_value("seed", "none").seed is None


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("heat", "1", "there is no 'heat' to set, but temperature"),
        ("temperature", "hot", "is a number"),
        ("temperature", "-1", "from 0 to 5"),
        ("temperature", "nan", "from 0 to 5"),
        ("top_p", "0", "above 0"),
        ("max_new_tokens", "0", "1 or more"),
        ("seed", "1.5", "whole number"),
    ],
)
def test_wrong_value_is_refused(name: str, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Choosing().with_value(name, text)


def test_messages_begin_with_what_the_model_is_told() -> None:
    assert CHAT.messages[:2] == (Message("system", "Be brief."), Message("user", "Hi"))
    assert Conversation().asked("Hi").messages == (Message("user", "Hi"),)
