"""Every case of a trial and the reference, in turn, round by round."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from clients.bench.answers import Answer, decode_rate, new_prompt
from clients.bench.fleet import Fleet
from clients.bench.reference import Reference
from clients.bench.trial import Case, Layout, SwarmTrial, shares
from clients.events import Step
from swarm.bystanders import Bystanders
from swarm.checkpoint import Checkpoint, resolve
from swarm.dtypes import DTYPES

__all__ = ["Measured", "Results", "Turn", "is_greedy", "measure"]

OTHER_ENDING = 8  # tokens after a prompt that is repeated, so that only the beginning is the same
ROUNDING = 1e-2  # by which a greedy token's logit may be below the highest, where two ways of batching differ


@dataclass(frozen=True, slots=True)
class Measured:
    """One case in one round. `steps`: those that decoded."""

    answers: Sequence[Answer]
    steps: Sequence[Step]


@dataclass(slots=True)
class Turn:
    """One round: the reference and each case. `long`: seconds to the first token of the long prompt, under `None` those
    of the reference. `repeated`: those of two prompts with the same beginning."""

    local: Answer
    cases: dict[Case, Measured] = field(default_factory=dict)
    long: dict[Layout | None, float] = field(default_factory=dict)
    repeated: dict[Layout, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Results:
    """`faithful`: of each case in fp32, whether all its tokens are the reference's greedy ones. `others`: processors
    that worked for somebody else meanwhile."""

    turns: Sequence[Turn]
    faithful: dict[Case, bool]
    others: float = 0.0


def measure(trial: SwarmTrial, notes: Console) -> tuple[Reference, Results]:
    """Takes minutes. Raises SwarmError."""
    checkpoint = resolve(trial.model, cache=trial.cache)
    for layout in trial.layouts:
        shares(checkpoint.num_blocks, layout.peers)  # before anything is started
    reference = Reference.load(checkpoint, "fp32", trial.threads)
    with ExitStack() as stack:
        fleets = [stack.enter_context(_start(trial, checkpoint, layout, notes)) for layout in trial.layouts]
        warm = _turn(trial, reference, fleets, 0)
        _tell(notes, "warm-up", warm)
        faithful = _faithful(trial, reference, warm)
        turns = []
        with Bystanders() as bystanders:
            for number in range(1, trial.rounds + 1):
                turns.append(_turn(trial, reference, fleets, number))
                _tell(notes, str(number), turns[-1])
        notes.print(str(bystanders))
    same = {case: all(_same(turn.local, turn.cases[case].answers[0]) for turn in turns) for case in faithful}
    return reference, Results(turns, {case: found and same[case] for case, found in faithful.items()}, bystanders.cores)


def _start(trial: SwarmTrial, checkpoint: Checkpoint, layout: Layout, notes: Console) -> Fleet:
    notes.print(f"starting {layout} …")
    return Fleet(
        trial.model,
        trial.cache,
        checkpoint,
        layout,
        peer_threads=trial.peer_threads,
        client_threads=trial.client_threads,
        client_dtype=DTYPES[trial.client_precision],
        client_head=trial.head(layout),
        shared=trial.shared,
    )


def _turn(trial: SwarmTrial, reference: Reference, fleets: Sequence[Fleet], number: int) -> Turn:
    """Prompts are new in each round, so that no peer has seen them before."""
    prompts = _prompts(trial, reference, number)
    turn = Turn(reference.ask(prompts[0], trial.new_tokens))
    for fleet in fleets:
        for sessions in trial.sessions:
            fleet.steps.clear()
            answers = fleet.ask(prompts[:sessions], trial.new_tokens)
            turn.cases[Case(fleet.layout, sessions)] = Measured(answers, fleet.steps.decoding(sessions))
    if trial.long_prompt:
        prompt = _prompt(reference, trial.long_prompt, number, 1)
        turn.long[None] = reference.ask(prompt, 1).first
        for fleet in fleets:
            turn.long[fleet.layout] = fleet.ask([prompt], 1)[0].first
    if trial.repeated_prompt:
        beginning = _prompt(reference, trial.repeated_prompt, number, 2)
        for fleet in fleets:
            turn.repeated[fleet.layout] = _repeat(reference, fleet, beginning, number)
    return turn


def _prompts(trial: SwarmTrial, reference: Reference, number: int) -> list[Tensor]:
    return [_prompt(reference, trial.prompt_tokens, number, 16 + index) for index in range(max(trial.sessions))]


def _prompt(reference: Reference, length: int, number: int, kind: int) -> Tensor:
    vocabulary = reference.model.config.get_text_config().vocab_size
    return new_prompt(vocabulary, length, seed=number * 65_536 + kind)


def _repeat(reference: Reference, fleet: Fleet, beginning: Tensor, number: int) -> tuple[float, float]:
    """Seconds to the first token of two prompts that begin alike and end differently."""
    endings = (_prompt(reference, OTHER_ENDING, number, kind) for kind in (3, 4))
    one, two = (fleet.ask([torch.cat([beginning, ending], 1)], 1)[0].first for ending in endings)
    return one, two


def _tell(notes: Console, name: str, turn: Turn) -> None:
    rates = ", ".join(f"{decode_rate(measured.answers):.1f}" for measured in turn.cases.values())
    notes.print(f"  {name}: local {decode_rate([turn.local]):.1f}, swarm {rates} tokens/s")


# --- are these the right tokens? -------------------------------------------------------------------------------------


def _exact(trial: SwarmTrial, case: Case) -> bool:
    return case.layout.precision == trial.client_precision == trial.head_precision(case.layout) == "fp32"


def _same(one: Answer, other: Answer) -> bool:
    return one.tokens == other.tokens


def _faithful(trial: SwarmTrial, reference: Reference, turn: Turn) -> dict[Case, bool]:
    """Of cases in fp32: whether each session's tokens are greedy ones. (Sessions that are computed together could be
    taken for each other; to generate all answers here as well would take too long.)"""
    prompts = _prompts(trial, reference, 0)
    exact = {case: measured for case, measured in turn.cases.items() if _exact(trial, case)}
    return {
        case: all(
            is_greedy(reference.model, prompt, answer) for prompt, answer in zip(prompts, found.answers, strict=False)
        )
        for case, found in exact.items()
    }


@torch.no_grad()
def is_greedy(model: PreTrainedModel, prompt: Tensor, answer: Answer) -> bool:
    """Whether each token of the answer to `prompt` [1, n] is the likeliest one."""
    tokens = torch.tensor([answer.tokens])
    logits = model(torch.cat([prompt, tokens], 1)).logits[0, prompt.shape[1] - 1 : -1]  # [new, vocabulary]
    short_by = logits.max(-1).values - logits.gather(-1, tokens[0][:, None])[:, 0]
    return bool((short_by <= ROUNDING).all())
