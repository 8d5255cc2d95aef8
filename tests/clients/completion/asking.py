"""Reading what a completer answers, and what one process answers alone."""

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from clients.completion.generation import Began, Completer, Event, Finished, Generation, Token
from clients.completion.request import Request, Sampling

__all__ = ["GREEDY", "Answers", "ask", "greedy", "read"]

GREEDY = Sampling(temperature=0.0)


@dataclass
class Answers:
    """All that came of one request."""

    events: list[Event] = field(default_factory=list)

    def tokens(self, choice: int = 0) -> list[int]:
        return [e.id for e in self.events if isinstance(e, Token) and e.choice == choice]

    @property
    def reasons(self) -> dict[int, str]:
        return {e.choice: e.reason for e in self.events if isinstance(e, Finished)}

    @property
    def cached(self) -> int:
        return next(e.cached for e in self.events if isinstance(e, Began))


async def read(generation: Generation) -> Answers:
    answers = Answers()
    async for event in generation:
        answers.events.append(event)
    return answers


async def ask(completer: Completer, request: Request) -> Answers:
    return await read(completer.submit(request))


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: tuple[int, ...], new: int) -> list[int]:
    """The likeliest tokens, by the whole model in this process."""
    tokens = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": new, "eos_token_id": None}
    made: list[int] = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)[0].tolist()
    return made[len(prompt) :]
