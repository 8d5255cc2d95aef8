"""Engines on a table: frames are carried by hand, so a test decides what arrives, when, and from whom."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from peers.engine import Engine
from peers.hosted import HostedAdapter
from peers.limits import EngineLimits
from peers.span import BlockSpan
from peers.training.desk import TrainingDesk
from swarm.checkpoint import Checkpoint, resolve
from swarm.codecs import decode, encode
from swarm.ids import PeerId, RowId, SessionId, Span, new_session_id
from swarm.messages import Close, Contact, Message, Open, Out, Ping, Step, StepRow, parse
from tests.models import tiny_model

CLIENT = PeerId("client")
M = TypeVar("M", bound=Message)


@dataclass
class Clock:
    """Seconds; each look takes `tick`."""

    now: float = 0.0
    tick: float = 0.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


class Model:
    """A tiny model, and what all its blocks make of hidden states in one process."""

    def __init__(self, checkpoint: Checkpoint, local: torch.nn.Module) -> None:
        self.checkpoint = checkpoint
        self.local = local

    @classmethod
    def make(cls, folder: Path, family: str = "llama") -> "Model":
        tiny_model(family, folder / family)
        local = AutoModelForCausalLM.from_pretrained(folder / family, dtype=torch.float32).eval()
        local.model.norm = torch.nn.Identity()
        return cls(resolve(str(folder / family), cache=folder / "cache"), local.model)

    @torch.inference_mode()
    def blocks(self, hidden: Tensor) -> Tensor:
        """`[T, H]` of one row through all blocks."""
        return self.local(inputs_embeds=hidden[None]).last_hidden_state[0]

    def row(self, tokens: int, seed: int = 0) -> Tensor:
        """Hidden states that might have come out of an embedding, `[tokens, H]`."""
        return torch.randn(tokens, self.checkpoint.hidden_size, generator=torch.Generator().manual_seed(seed))


def make_engine(
    model: Model,
    blocks: Span,
    *,
    kv_tokens: int = 1024,
    outbox_tokens: int = 1024,
    page_size: int = 8,
    clock: Callable[[], float] | None = None,
    limits: EngineLimits | None = None,
    span: BlockSpan | None = None,
    hosted: Sequence[HostedAdapter] = (),
    training: TrainingDesk | None = None,
) -> Engine:
    span = span or BlockSpan.load(
        model.checkpoint,
        blocks,
        dtype=torch.float32,
        device=torch.device("cpu"),
        kv_tokens=kv_tokens,
        page_size=page_size,
    )
    return Engine(
        span,
        model=model.checkpoint.digest,
        max_positions=model.checkpoint.max_positions,
        outbox_tokens=outbox_tokens,
        limits=limits,
        training=training,
        hosted=[each.placed(span) for each in hosted],
        clock=clock or Clock(),
    )


@dataclass
class Table:
    """Engines by peer id, and the client's hands. Frames to peers that are not here are lost, as after a kill."""

    model: Model
    engines: dict[PeerId, Engine]
    to_client: list[tuple[PeerId, Message]] = field(default_factory=list)
    carried: list[tuple[PeerId, PeerId, Message]] = field(default_factory=list)

    def run(self) -> None:
        """Until nothing is left to do anywhere."""
        busy = True
        while busy:
            busy = False
            for peer, engine in list(self.engines.items()):
                busy |= engine.step()
                for target, frame in engine.outgoing():
                    busy = True
                    self.carried.append((peer, target, parse(frame)))
                    self.give(peer, target, frame)

    def give(self, sender: PeerId, target: PeerId, frame: bytes) -> None:
        if target == CLIENT:
            self.to_client.append((sender, parse(frame)))
        elif target in self.engines:
            self.engines[target].receive(sender, frame)

    def say(self, peer: PeerId, *messages: Message, sender: PeerId = CLIENT) -> list[Message]:
        """Sends frames to one engine, lets everything run, and returns what the client then got."""
        before = len(self.to_client)
        for message in messages:
            self.give(sender, peer, message.pack())
        self.run()
        return [message for _, message in self.to_client[before:]]

    def got(self, kind: type[M]) -> list[M]:
        return [message for _, message in self.to_client if isinstance(message, kind)]


@dataclass(eq=False)
class Chain:
    """A client's session over some hops of a table; every hop knows it under an id of its own."""

    table: Table
    hops: Sequence[tuple[PeerId, Span]]
    lease: int = 256
    codec: str = "fp32"
    share: bool = False
    ids: list[SessionId] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = self.ids or [new_session_id() for _ in self.hops]

    def opening(self, index: int, **changes: object) -> Open:
        last = index + 1 == len(self.hops)
        fields: dict[str, object] = {
            "session": self.ids[index],
            "model": self.table.model.checkpoint.digest,
            "hop": self.hops[index][1],
            "codec": self.codec,
            "prev": self.hops[index - 1][0] if index else CLIENT,
            "next": None if last else Contact(self.hops[index + 1][0]),
            "lease": self.lease,
            "next_session": None if last else self.ids[index + 1],
            "share": self.share,
        }
        return Open(**(fields | changes))  # type: ignore[arg-type]

    def open(self) -> "Chain":
        for index, (peer, _) in enumerate(self.hops):
            self.table.say(peer, self.opening(index))
        return self

    def send(self, *rows: tuple[int, int, Tensor], want: int | None = 0) -> list[Message]:
        """Gives `(row, at, hidden states)` to the first hop; returns what the client then got."""
        return self.table.say(self.hops[0][0], self.step(*rows, want=want))

    def step(self, *rows: tuple[int, int, Tensor], want: int | None = 0, index: int = 0) -> Step:
        entries = tuple(
            StepRow(RowId(row), at, len(hidden), at + len(hidden) - 1 if want is None else want)
            for row, at, hidden in rows
        )
        return Step(self.ids[index], entries, self.codec, encode(torch.cat([h for _, _, h in rows]), self.codec))

    def position(self, index: int, row: int = 0) -> int | None:
        pong = self.table.say(self.hops[index][0], Ping(self.ids[index], 1))[-1]
        return pong.rows.get(RowId(row))  # type: ignore[union-attr]

    def close(self) -> None:
        for (peer, _), session in zip(self.hops, self.ids, strict=True):
            self.table.say(peer, Close(session))


def outputs(messages: Iterable[Message], width: int) -> dict[tuple[int, int], Tensor]:
    """The hidden states in Outs, by (row, position)."""
    found: dict[tuple[int, int], Tensor] = {}
    for out in messages:
        if isinstance(out, Out):
            states = iter(decode(out.body, out.codec, width))
            for row in out.rows:
                found |= {(row.row, at): next(states) for at in range(row.at, row.at + row.n)}
    return found


def row_of(found: dict[tuple[int, int], Tensor], row: int) -> Tensor:
    """All positions of one row, from 0 on, `[T, H]`; fails on a gap."""
    count = sum(r == row for r, _ in found)
    return torch.stack([found[row, at] for at in range(count)])
