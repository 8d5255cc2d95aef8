"""A chat through a swarm that this process has joined: one session from turn to turn.

Peers keep the keys and values of the chat, so a turn costs its own tokens: of the new prompt only what differs from
what the session already has is sent.
"""

import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from clients.cache import SwarmCache
from clients.chat import TextStream, encode_chat
from clients.events import ChainChanged, Event, Excluded, PeerLost, Step, Waiting
from clients.model import SwarmModelForCausalLM
from clients.own_adapter import Choice
from clients.terminal.backend import ChainNow, Ended, Happening, HopNow, Lost, Pace, Pausing, Text, Wanted
from clients.terminal.conversation import Choosing, Message
from routing.chains import Hop
from swarm.errors import UsageError
from swarm.ids import PeerId
from swarm.training import PackedAdapter

__all__ = ["Joined"]

AHEAD = 256  # tokens and events that may wait for the screen before the generation waits


class Joined:
    """A backend, see `clients.terminal.backend`. Made by `join`."""

    def __init__(
        self,
        name: str,
        model: SwarmModelForCausalLM,
        tokenizer: Any,
        adapters: Mapping[int, PackedAdapter] | None = None,
    ) -> None:
        """`model`: its observer is `hear`, or nothing is told of the chain. `adapters`: by block, what every answer is
        computed with."""
        self.model = name
        self._swarm = model
        self._adapters = adapters
        self._tokenizer = tokenizer
        self._past: SwarmCache | None = None
        self._known: list[int] = []  # the tokens that `_past` stands for
        self._names: Mapping[PeerId, str] = {}
        self._chain: ChainNow | None = None
        self._heard: Callable[[Happening], None] | None = None

    @classmethod
    def join(
        cls,
        wanted: Wanted,
        *,
        initial_peers: Sequence[str],
        cache: Path,
        codec: str | None = None,
        patience: float = 30.0,
    ) -> "Joined":
        """Raises SwarmError."""
        adapter = Choice(wanted.adapter, wanted.model, cache=cache)
        made: list[Joined] = []

        def hear(event: Event) -> None:
            if made:
                made[0].hear(event)

        model = SwarmModelForCausalLM.from_pretrained(
            wanted.model, initial_peers=initial_peers, cache=cache, codec=codec, patience=patience, observer=hear
        )
        try:
            adapter.load(model)
            tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
            made.append(cls(wanted.name, model, tokenizer, adapter.blocks))
        except BaseException:
            model.close()
            raise
        return made[0]

    def answer(self, messages: Sequence[Message], choosing: Choosing) -> Generator[Happening, None, None]:
        prompt = self._encode(messages)
        begun, past = self._begin(prompt)
        options = self._options(prompt, past, choosing)
        if choosing.seed is not None:
            torch.manual_seed(choosing.seed)
        tokens: list[int] = []
        try:
            with past.interruptible():
                yield from self._stream(prompt, past, options, tokens)
        except Exception:
            self._forget()
            raise
        finally:
            self._known = [*prompt[0].tolist(), *tokens][: past.get_seq_length()]
        yield self._ended(prompt, begun, tokens)

    def _stream(
        self, prompt: Tensor, past: SwarmCache, options: Mapping[str, Any], tokens: list[int]
    ) -> Generator[Happening, None, None]:
        """What happens while a thread generates; the thread has ended when this has. New tokens go to `tokens`, too."""
        feed = _Feed()
        self._heard = feed.offer

        def generate() -> None:
            ending: BaseException | None = None
            try:
                criteria = StoppingCriteriaList([feed])
                self._swarm.generate(
                    prompt, past_key_values=past, streamer=_Bridge(feed), stopping_criteria=criteria, **options
                )
            except CancelledError:  # the reader has gone
                pass
            except Exception as error:  # it is raised where the answer is read
                ending = error
            feed.put(ending)

        thread = threading.Thread(target=generate, name="swarm answer", daemon=True)
        thread.start()
        text = TextStream(self._tokenizer)
        try:
            while (item := feed.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if not isinstance(item, int):
                    yield item
                    continue
                tokens.append(item)
                if new := text.push(item):
                    yield Text(new)
        finally:
            self._heard = None
            feed.stop()
            past.interrupt()
            feed.drain(thread)

    def hear(self, event: Event) -> None:
        """An observer of sessions; called on the connection's thread."""
        happening = self._happening(event)
        if isinstance(happening, ChainNow):
            self._chain = happening
        heard = self._heard
        if happening is not None and heard is not None:
            heard(happening)

    def close(self) -> None:
        self._forget()
        self._swarm.close()

    # --- inside ---

    def _encode(self, messages: Sequence[Message]) -> Tensor:
        return encode_chat(self._tokenizer, [(message.role, message.content) for message in messages])

    def _begin(self, prompt: Tensor) -> tuple[int, SwarmCache]:
        """How many tokens of `prompt` the session has, and its cache, cut to them."""
        if self._past is None:
            self._past, self._known = self._swarm.new_cache(adapters=self._adapters), []
        common = _common(self._known, prompt[0].tolist())
        begun = min(common, prompt.shape[1] - 1)  # one token has to be sent, to get an output back
        self._past.crop(begun - self._past.get_seq_length())
        self._known = self._known[:begun]
        return begun, self._past

    def _options(self, prompt: Tensor, past: SwarmCache, choosing: Choosing) -> dict[str, Any]:
        room = past.get_max_length() - prompt.shape[1]
        if room < 1:
            raise UsageError(
                f"this has {prompt.shape[1]} tokens, and the model's context is {past.get_max_length()}: shorten it; "
                "in a chat, begin a new one with /clear, or take something back with /undo"
            )
        sampling = {"do_sample": True, "temperature": choosing.temperature, "top_p": choosing.top_p, "top_k": 0}
        return {
            "max_new_tokens": min(choosing.max_new_tokens, room),
            "attention_mask": torch.ones_like(prompt),  # or the library takes tokens like that of padding for it
            **(sampling if choosing.temperature else {"do_sample": False}),
        }

    def _ended(self, prompt: Tensor, begun: int, tokens: list[int]) -> Ended:
        config: Any = self._swarm.generation_config
        ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else {*(config.eos_token_id or ())}
        whole = bool(tokens) and tokens[-1] in ends
        return Ended("stop" if whole else "length", prompt.shape[1], begun, len(tokens))

    def _forget(self) -> None:
        """The next answer begins with a new session."""
        if self._past is not None:
            self._past.close()
        self._past, self._known = None, []

    def _happening(self, event: Event) -> Happening | None:
        match event:
            case ChainChanged(hops, lost, seconds):
                self._names = {**self._names, **{hop.peer: _name(hop) for hop in hops}}
                return ChainNow(tuple(HopNow(_name(h), str(h.span)) for h in hops), seconds, mended=bool(lost))
            case PeerLost(peer, reason) | Excluded(peer, reason):
                return Lost(self._names.get(peer, peer[-8:]), reason)
            case Waiting(reason, seconds):
                return Pausing(reason, seconds)
            case Step(seconds, _, trace):
                return Pace(seconds, tuple((queued + computed) / 1000 for queued, computed in trace))
        return None


def _name(hop: Hop) -> str:
    return hop.name or hop.peer[-8:]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many elements both begin with."""
    pairs = zip(a, b, strict=False)
    return next((at for at, (left, right) in enumerate(pairs) if left != right), min(len(a), len(b)))


class _Feed(StoppingCriteria):
    """From the threads that generate and that hear of the swarm to the one that reads: bounded, and stoppable."""

    def __init__(self) -> None:
        self._items: queue.Queue[Happening | int | BaseException | None] = queue.Queue(AHEAD)
        self._stopped = threading.Event()

    def get(self) -> Happening | int | BaseException | None:
        """A token, an event, what went wrong, or None at the end."""
        return self._items.get()

    def put(self, item: int | BaseException | None) -> None:
        """Waits for room as long as anybody reads."""
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._items.put(item, timeout=0.1)
                return

    def offer(self, happening: Happening) -> None:
        with suppress(queue.Full):  # a screen that is far behind may miss how the chain is
            self._items.put_nowait(happening)

    def stop(self) -> None:
        self._stopped.set()

    def drain(self, thread: threading.Thread) -> None:
        """Wait for the end of the thread, which may be waiting for room."""
        while thread.is_alive():
            with suppress(queue.Empty):
                self._items.get_nowait()
            thread.join(0.02)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self._stopped.is_set())


class _Bridge(BaseStreamer):
    def __init__(self, feed: _Feed) -> None:
        self._feed = feed
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self._feed.put(token)
        self._prompt_seen = True

    def end(self) -> None:
        pass
