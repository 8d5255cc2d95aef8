"""A chat over the library's own blocks behind a stand-in for the connection: what is sent, and what is answered."""

from collections.abc import Iterator

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from clients.chat import encode_chat
from clients.events import ChainChanged, PeerLost, Step, Waiting
from clients.model import SwarmModelForCausalLM
from clients.terminal.backend import ChainNow, Ended, Happening, HopNow, Lost, Pace, Pausing, Text
from clients.terminal.conversation import Choosing, Conversation
from clients.terminal.joined import Joined
from routing.chains import Hop
from swarm.errors import UsageError
from swarm.ids import PeerId, Span
from swarm.messages import Contact
from tests.clients.local_session import LocalConnection

GREEDY = Choosing(temperature=0, max_new_tokens=9)
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} ; {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
ADA = Hop(Contact(PeerId("peer-of-ada"), ()), Span(0, 4), 0.1, name="ada")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "</s>", "user", "assistant", "system", ":", ";", *(f"w{n}" for n in range(8, 128))]
    words_of = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(words_of, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", chat_template=TEMPLATE
    )


@pytest.fixture
def joined(model: SwarmModelForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Iterator[Joined]:
    model.generation_config.eos_token_id = None  # a random model must not end early
    backend = Joined("tiny", model, tokenizer)
    yield backend
    backend.close()


def ask(joined: Joined, chat: Conversation, choosing: Choosing = GREEDY) -> tuple[str, Ended]:
    *pieces, ended = joined.answer(chat.messages, choosing)
    assert isinstance(ended, Ended)
    return "".join(piece.text for piece in pieces if isinstance(piece, Text)), ended


def test_a_turn_sends_only_its_own_tokens(
    joined: Joined, connection: LocalConnection, local: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = Conversation("w9 w10").asked(" ".join(f"w{n}" for n in range(20, 60)))
    for question in ("w70 w71", "w72", ""):
        text, ended = ask(joined, chat)
        ids = encode_chat(tokenizer, [(message.role, message.content) for message in chat.messages])
        expected = local.generate(ids, max_new_tokens=9, do_sample=False, eos_token_id=None)[0, ids.shape[1] :]
        assert text == tokenizer.decode(expected, skip_special_tokens=True)
        assert ended.prompt == ids.shape[1]
        chat = chat.answered(text).asked(question)
    assert len(connection.sessions) == 1
    firsts = [tokens for tokens, _ in connection.sent if tokens > 1]
    assert firsts[0] > 40
    assert all(first < 16 for first in firsts[1:])
    assert ended.cached is not None
    assert ended.cached > 50


def test_chat_that_is_changed_is_cut_back_to_what_stays(joined: Joined, connection: LocalConnection) -> None:
    start = Conversation().asked("w20 w21 w22 w23 w24 w25 w26 w27")
    first, _ = ask(joined, start)
    ask(joined, start.answered(first).asked("w30"))
    again, ended = ask(joined, start)
    assert again == first
    assert ended.prompt is not None
    assert ended.cached == ended.prompt - 1
    assert len(connection.sessions) == 1


def test_answer_that_is_closed_stops_and_the_chat_goes_on(
    joined: Joined, connection: LocalConnection, model: SwarmModelForCausalLM
) -> None:
    start = Conversation().asked("w20 w21 w22")
    whole, _ = ask(joined, start)
    answer = joined.answer(start.messages, Choosing(temperature=0, max_new_tokens=500))
    assert isinstance(next(answer), Text)
    answer.close()
    sent = len(connection.sent)
    assert ask(joined, start)[0] == whole
    assert len(connection.sessions) == 1
    assert sent < 500


def test_answer_that_hangs_is_closed_too(joined: Joined, connection: LocalConnection) -> None:
    start = Conversation().asked("w20 w21 w22")
    answer = joined.answer(start.messages, GREEDY)
    next(answer)
    connection.gate.clear()
    connection.waiting.wait(10)
    answer.close()
    connection.gate.set()
    assert ask(joined, start)[1].tokens == 9


def test_seed_makes_sampling_repeatable(joined: Joined) -> None:
    chat, choosing = Conversation().asked("w20 w21"), Choosing(temperature=2.0, top_p=1.0, max_new_tokens=12, seed=3)
    assert len({ask(joined, chat, choosing)[0] for _ in range(3)}) == 1


def test_chat_longer_than_the_context_is_refused(joined: Joined) -> None:
    with pytest.raises(UsageError, match=r"the model's context is 1024.*/clear"):
        ask(joined, Conversation().asked("w20 " * 1100))
    assert ask(joined, Conversation().asked("w20"))[1].tokens == 9


def test_what_the_session_hears_comes_with_the_answer(joined: Joined) -> None:
    answer = joined.answer(Conversation().asked("w20").messages, GREEDY)
    seen: list[Happening] = [next(answer)]
    joined.hear(ChainChanged((ADA,), (), 0.5, "begun"))
    joined.hear(PeerLost(ADA.peer, "it is gone"))
    joined.hear(PeerLost(PeerId("12D3KooWnobody42"), "who?"))
    joined.hear(Waiting("nobody has room", 2.0))
    joined.hear(Step(0.25, 1, ((1.0, 20.0),)))
    seen += answer
    assert [happening for happening in seen if not isinstance(happening, Text | Ended)] == [
        ChainNow((HopNow("ada", "0:4"),), 0.5, mended=False),
        Lost("ada", "it is gone"),
        Lost("nobody42", "who?"),
        Pausing("nobody has room", 2.0),
        Pace(0.25, (0.021,)),
    ]


def test_end_of_an_answer_is_told(
    joined: Joined, model: SwarmModelForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    _, cut = ask(joined, Conversation().asked("w20"))
    assert cut.reason == "length"
    prompt = encode_chat(tokenizer, [("user", "w20")])
    model.generation_config.eos_token_id = int(model.generate(prompt, max_new_tokens=3, do_sample=False)[0, -1])
    _, whole = ask(joined, Conversation().asked("w20"))
    assert whole.reason == "stop"
