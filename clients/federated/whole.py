"""`swarm finetune --join`: a whole run of one member, told as it happens."""

from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer

from clients.client import Client
from clients.connection import Connection, join, routed
from clients.federated.member import Member
from clients.federated.options import Place, Together
from clients.federated.privacy import check_accountant, spent
from clients.federated.rounds import Kept, Round, Rounds, flat
from clients.federated.terms import Terms
from clients.finetune.adapter import with_adapter
from clients.finetune.data import rows_for
from clients.finetune.run import Tuning
from clients.finetune.settings import Settings
from clients.finetune.telling import next_command
from clients.finetune.whole import make_folder, save_adapter
from clients.model import SwarmModelForCausalLM
from clients.training.compression import Compress
from swarm.addresses import peer_of
from swarm.checkpoint import Checkpoint, resolve
from swarm.entrance import parse_peers
from swarm.errors import UsageError
from swarm.fields import Contact
from swarm.identity import Identity

__all__ = ["federate", "terms_of"]

PRIVATE = {"data", "held_out", "truncate", "model"}  # of a client's settings: nobody else's business, or no difference
DELTA = 1e-5  # the chance that differential privacy does not hold, as it is told
SHOWN = 8  # last characters of a peer id


def terms_of(settings: Settings, together: Together, model: str, size: int) -> Terms:
    """Raises UsageError."""
    if settings.steps % together.local_steps:
        raise UsageError(f"--steps {settings.steps} is no multiple of --local-steps {together.local_steps}")
    training = {key: value for key, value in settings.identity().items() if key not in PRIVATE}
    rates = {"avg": 1.0, "avgm": 0.3}
    usual = rates.get(together.server, settings.learning_rate * together.local_steps**0.5)
    return Terms(
        name=together.join or "",
        training={**training, "model": model, "local_steps": together.local_steps},
        size=size,
        rounds=settings.steps // together.local_steps,
        rule=together.rule,
        server=together.server,
        server_rate=usual if together.server_rate is None else together.server_rate,
        clip=together.clip,
        most_tokens=settings.batch * settings.max_length * together.local_steps,
        noise=together.noise,
        min_members=together.min_members,
        wait=together.wait,
    )


def federate(
    settings: Settings,
    together: Together,
    place: Place,
    *,
    initial_peers: Sequence[str],
    cache: Path,
    codec: str | None,
    compress: str,
    patience: float,
) -> None:
    """Raises SwarmError."""
    if together.noise:
        check_accountant()
    contacts = [Contact(peer_of(address), (address,)) for address in parse_peers(place.meet or ())]
    console = Console(highlight=False, soft_wrap=True)
    checkpoint = resolve(settings.model, cache=cache)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    rows = rows_for(settings, tokenizer, context=checkpoint.max_positions)
    make_folder(settings.output)
    with ExitStack() as stack:
        joined = _Joined(checkpoint, initial_peers, place, codec or "fp32", Compress.of(compress), patience)
        stack.callback(joined.connection.close)
        model = stack.enter_context(
            SwarmModelForCausalLM.from_pretrained(
                settings.model, cache=cache, connection=joined.connection, dtype=torch.float32
            )
        )
        torch.manual_seed(settings.seed)  # all members begin with the same adapter
        tuned = with_adapter(model, settings)
        weights = flat(tuned)
        terms = terms_of(settings, together, checkpoint.digest, len(weights))
        kept = Kept.load(settings.output, terms, weights)
        tuning = Tuning(settings, tuned, rows, checkpoint.digest)
        member = joined.member(terms, kept, contacts)
        for address in joined.addresses:
            console.print(f"others join with the same options; --meet {address} finds us at once", markup=False)
        rounds = Rounds(
            terms, tuning, tuned, kept, folder=settings.output, steps=together.local_steps, caller=joined.connection
        )
        rounds.run(member, lambda told: console.print(_told(told, terms), markup=False))
        save_adapter(settings, tuned, tokenizer)
    console.print(f"the adapter is in {settings.output}", markup=False)
    console.print(next_command(settings, initial_peers), markup=False)


class _Joined:
    """A client that others can dial."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        initial_peers: Sequence[str],
        place: Place,
        codec: str,
        compress: Compress,
        patience: float,
    ) -> None:
        self._identity = Identity.ephemeral()
        self._stack = AsyncExitStack()
        where: dict[str, Any] = {"host": place.host, "port": place.port, "announce": tuple(place.announce or ())}

        async def enter(stack: AsyncExitStack) -> Client:
            self._host, self._directory = await join(stack, initial_peers, identity=self._identity, **where)
            client = Client(self._host.transport, self._directory, routed(checkpoint), codec=codec, measures=True)
            entered = await stack.enter_async_context(client)
            await stack.enter_async_context(self._stack)
            return entered

        self.connection = Connection(enter, patience=patience, compress=compress)
        self.addresses = self.connection.call(self._host.transport.addresses())

    def member(self, terms: Terms, kept: Kept, contacts: Sequence[Contact]) -> Member:
        transport, directory = self._host.transport, self._directory
        member = Member(
            transport,
            self._identity,
            terms,
            kept.standing,
            contacts=contacts,
            directory=directory,
            signed=kept.vouchers,
        )
        return self.connection.call(self._stack.enter_async_context(member))


def _told(told: Round, terms: Terms) -> str:
    held = "" if told.evaluation is None else f", held-out {told.evaluation:.3f}"
    text = f"round {told.round} of {terms.rounds}: {len(told.losses)} members, loss {told.loss:.3f}{held}"
    for peer, reason in sorted(told.left_out.items()):
        text += f"; without …{peer[-SHOWN:]}: {reason}"
    if terms.noise:
        epsilon = spent(terms.noise, told.releases, DELTA)
        text += f"; privacy of all data here: epsilon {epsilon:.3g} at delta {DELTA:g}"
    return text
