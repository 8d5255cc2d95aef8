"""`swarm bench gateway`: one gateway process against the Python client, over the same peers."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from torch import Tensor
from transformers import AutoTokenizer

from clients.bench.answers import Answer, decode_rate, new_prompt
from clients.bench.fleet import Fleet
from clients.bench.gateway_report import GatewayReport
from clients.bench.reference import Weights
from clients.bench.report import case_floor, thread_counts
from clients.bench.streams import Stream, stream_rate, streams
from clients.bench.trial import Case, GatewayTrial, Layout, shares
from clients.local_gateway import GatewayProcess
from swarm.bystanders import Bystanders
from swarm.checkpoint import resolve
from swarm.figures import publish
from swarm.rates import measure_rates, usable_cores
from swarm.weights import quiet_library

__all__ = ["GatewayTurn", "run"]

READY_SECONDS = 120.0
NEVER = -100.0  # the bias of tokens that end an answer: all answers are equally long
CHAT_TOKENS = 16  # of each answer in the chat
WORDS = ("apples", "bread", "candles", "doors", "engines", "flowers", "gardens", "houses", "islands", "lamps")


@dataclass(frozen=True, slots=True)
class GatewayTurn:
    """What was measured in one round; `chat` are the seconds to the first token of each turn."""

    sessions: Sequence[Answer]
    streams: Sequence[Stream]
    same: int  # streams whose text is that of the session with their prompt
    chat: Sequence[float]


class _Bench:
    """Peers, a client of them in this process, and a gateway. A context manager by its stack."""

    def __init__(self, trial: GatewayTrial, stack: ExitStack, notes: Console) -> None:
        checkpoint = resolve(trial.model, cache=trial.cache)
        self.layout = Layout(trial.peers, "fp32")
        notes.print(f"starting {self.layout} and a gateway …")
        self._trial = trial
        self._name = checkpoint.name
        fleet = Fleet(
            trial.model, trial.cache, checkpoint, self.layout, peer_threads=trial.peer_threads, client_threads=1
        )
        self._fleet = stack.enter_context(fleet)
        room = ("--max-running", str(trial.streams), "--queue", str(trial.streams))
        way_in = ("--initial-peers", ",".join(fleet.addresses), "--cache-dir", str(trial.cache), "--port", "0")
        gateway = stack.enter_context(
            GatewayProcess([trial.model, *way_in, *room], environment={"OMP_NUM_THREADS": "1"})
        )
        self._base_url = gateway.wait_ready(READY_SECONDS).base_url
        with quiet_library():
            self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
        self.weights = Weights.of(fleet.model)

    def turn(self, number: int) -> GatewayTurn:
        """Both have prompts of their own, new in each round, so that neither finds what the other has left at peers.
        One prompt in each round is the same for both, and asked last."""
        trial, first, second = self._trial, 2 * number, 2 * number + 1
        sessions, prompts = self._fleet.ask(self._prompts(first), trial.new_tokens), self._prompts(second)
        answered = self._stream(prompts)
        check = self._fleet.ask(prompts[:1], trial.new_tokens)[0]
        text = self._tokenizer.decode(list(check.tokens), skip_special_tokens=True)
        return GatewayTurn(sessions, answered, int(answered[0].text == text), self._chat(number))

    def _prompts(self, number: int) -> list[Tensor]:
        vocabulary, length = self._fleet.model.config.get_text_config().vocab_size, self._trial.prompt_tokens
        return [new_prompt(vocabulary, length, seed=number * 65_536 + index) for index in range(self._trial.streams)]

    def _stream(self, prompts: Sequence[Tensor]) -> list[Stream]:
        wanted = {"model": self._name, "max_tokens": self._trial.new_tokens, **self._greedy()}
        return streams(self._base_url, "/completions", [wanted | {"prompt": p[0].tolist()} for p in prompts])

    def _chat(self, number: int) -> list[float]:
        wanted = {"model": self._name, "max_tokens": CHAT_TOKENS, **self._greedy()}
        messages, times = list[Mapping[str, str]](), list[float]()
        for turn in range(self._trial.turns):
            word = WORDS[turn % len(WORDS)]
            messages.append({"role": "user", "content": f"Chat {number}, turn {turn}: tell me something about {word}."})
            (answer,) = streams(self._base_url, "/chat/completions", [wanted | {"messages": list(messages)}])
            messages.append({"role": "assistant", "content": answer.text})
            times.append(answer.first)
        return times

    def _greedy(self) -> dict[str, Any]:
        settings = self._fleet.model.generation_config
        ids = None if settings is None else settings.eos_token_id
        ends = {self._tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None}
        return {"temperature": 0, "logit_bias": {str(token): NEVER for token in ends}}


def run(trial: GatewayTrial, notes: Console) -> None:
    """Measure and print; takes minutes. Raises SwarmError."""
    shares(resolve(trial.model, cache=trial.cache).num_blocks, trial.peers)  # before anything is started
    cores, sessions = usable_cores(), trial.sessions
    notes.print("measuring this machine …")
    rates = {count: measure_rates(count) for count in sorted(thread_counts(sessions, cores))}
    turns: list[GatewayTurn] = []
    with ExitStack() as stack:
        bench = _Bench(trial, stack, notes)
        _tell(notes, "warm-up", bench.turn(0))
        with Bystanders() as bystanders:
            for number in range(1, trial.rounds + 1):
                turns.append(bench.turn(number))
                _tell(notes, str(number), turns[-1])
        notes.print(str(bystanders))
    most = case_floor(Case(bench.layout, trial.streams), bench.weights, rates, sessions, cores)
    report = GatewayReport.of(turns, most)
    settings = {**asdict(trial), "cache": str(trial.cache)}
    machine = [asdict(each) for each in rates.values()]
    said = {"settings": settings, "rates": machine, "others": bystanders.cores, **report.as_json()}
    publish("gateway", list(report.tables(trial)), said, alone=notes.quiet)


def _tell(notes: Console, name: str, turn: GatewayTurn) -> None:
    sessions, gateway = decode_rate(turn.sessions), stream_rate(turn.streams)
    notes.print(f"  {name}: Python client {sessions:.1f}, gateway {gateway:.1f} tokens/s")
