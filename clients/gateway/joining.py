"""Models, joined to a swarm as a client, that many users can share."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from transformers import AutoTokenizer

from clients.completion.limits import Limits
from clients.completion.shared import SharedModel
from clients.connection import Connection
from clients.gateway.adapters import AdapterOption, of_models
from clients.gateway.conversation import ends_of_turns
from clients.gateway.hosted import HostedAdapters
from clients.gateway.sampling import model_sampling
from clients.gateway.served import Served
from clients.model import SwarmModelForCausalLM
from clients.network import Network
from clients.own_adapter import read_adapter
from swarm import catalogue
from swarm.checkpoint import resolve
from swarm.errors import ModelError, UsageError
from swarm.hub import looks_like_hub_id
from swarm.record import PeerRecord
from swarm.terminal import plain
from swarm.training import PackedAdapter
from swarm.weights import quiet_library

__all__ = ["Joined", "Shared", "choose_models", "join_models", "read_adapters", "share"]

OwnAdapters = Mapping[str, Mapping[int, PackedAdapter]]  # by name, then by block

_log = logging.getLogger(__name__)

MOST_MODELS = 16  # that a gateway takes from what a swarm announces
TUNED = Limits(lanes=1, idle_seconds=60.0)  # of a model with an adapter: each lane keeps room at the peers for itself
EMPTY: Mapping[str, OwnAdapters] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Joined:
    """A model with its way into the swarm. `adapters`: by name, then by block."""

    name: str
    aliases: tuple[str, ...]
    model: SwarmModelForCausalLM
    tokenizer: Any
    adapters: OwnAdapters = field(default_factory=dict)


def choose_models(records: Iterable[PeerRecord], cache: Path) -> tuple[str, ...]:
    """The models that peers announce and this machine has, those of most peers first. What it would have to fetch is
    left to whoever runs it: strangers announce what they like. Raises UsageError when there is none."""
    peers = Counter((record.model_name, record.model) for record in records)
    chosen: list[str] = []
    for (name, digest), _ in peers.most_common():
        reason = _why_not(name, digest, cache) if len(chosen) < MOST_MODELS else f"{MOST_MODELS} models are enough"
        if reason is None and name not in chosen:
            chosen.append(name)
        elif reason is not None:
            _log.info("%s is not served here: %s", plain(name, 80), reason)
    if not chosen:
        announced = ", ".join(sorted({plain(name, 80) for name, _ in peers})) or "nothing"
        raise UsageError(
            f"which model? This swarm serves {announced}, of which this machine has none: name the models to serve"
        )
    return tuple(chosen)


def _why_not(name: str, digest: str, cache: Path) -> str | None:
    """Why an announced model can't be served without asking; None when it can."""
    if catalogue.find(name) is None and not looks_like_hub_id(name):
        return "it is no name of the catalogue or the hub; start the gateway with where it is"
    try:
        checkpoint = resolve(name, cache=cache, offline=True)
    except ModelError as error:
        return f"it is not on this machine ({error}); start the gateway with its name to fetch it"
    if checkpoint.digest != digest:
        return f"its peers have other weights ({digest[:12]}) than this machine ({checkpoint.digest[:12]})"
    return None


def read_adapters(options: Iterable[AdapterOption], models: Sequence[str], *, cache: Path) -> dict[str, OwnAdapters]:
    """Those of each of `models`, read and checked. Raises UsageError, ModelError."""
    found: dict[str, OwnAdapters] = {}
    for model, own in of_models(options, models).items():
        if own:
            checkpoint = resolve(model, cache=cache)
            found[model] = {one.name: read_adapter(one.source, checkpoint, cache=cache).blocks for one in own}
    return found


def join_models(
    names: Sequence[str],
    network: Network,
    stack: ExitStack,
    *,
    cache: Path,
    codec: str | None,
    patience: float,
    adapters: Mapping[str, OwnAdapters] = EMPTY,
) -> list[Joined]:
    """Load what a client needs of each model, and join; `stack` leaves again. `adapters`: by model. Raises ModelError,
    UsageError."""
    joined = [
        _join(name, network, stack, cache=cache, codec=codec, patience=patience, adapters=adapters.get(name, {}))
        for name in names
    ]
    known = [name for one in joined for name in (one.name,)]
    doubled = [name for name, count in Counter(known).items() if count > 1]
    if doubled:
        raise UsageError(f"two of these models go by the name {doubled[0]}: give one of them")
    return joined


def _join(
    name: str,
    network: Network,
    stack: ExitStack,
    *,
    cache: Path,
    codec: str | None,
    patience: float,
    adapters: OwnAdapters,
) -> Joined:
    checkpoint = resolve(name, cache=cache)
    model = SwarmModelForCausalLM.from_pretrained(name, network=network, codec=codec, patience=patience, cache=cache)
    stack.callback(model.close)
    try:
        with quiet_library():
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name} has no tokenizer that can be loaded: {error}") from error
    entry = catalogue.find(name)
    source = () if entry is None or entry.package is not None else (entry.source,)
    return Joined(checkpoint.name, source, model, tokenizer, adapters)


@dataclass(frozen=True, slots=True)
class Shared:
    """A model open to many users: by itself, with each adapter of this gateway, and with what its peers host."""

    served: tuple[Served, ...]
    hosted: HostedAdapters

    @property
    def name(self) -> str:
        return self.hosted.model


async def share(joined: Joined, stack: AsyncExitStack) -> Shared:
    """`stack` ends it. What is on this machine of the model is there once; rows with an adapter run along chains of
    their own."""
    plainly = _served(joined, await stack.enter_async_context(SharedModel(joined.model)))
    served = [plainly]
    for name, blocks in joined.adapters.items():
        completer = await stack.enter_async_context(SharedModel(joined.model, TUNED, adapters=blocks))
        served.append(_with_adapter(plainly, name, completer))
    hosted = HostedAdapters(
        plainly, lambda digest: SharedModel(joined.model, TUNED, hosted=digest), taken=joined.adapters
    )
    return Shared(tuple(served), await stack.enter_async_context(hosted))


def _with_adapter(served: Served, adapter: str, completer: SharedModel) -> Served:
    aliases = tuple(f"{alias}:{adapter}" for alias in served.aliases)
    return replace(served, name=f"{served.name}:{adapter}", adapter=adapter, completer=completer, aliases=aliases)


def _served(joined: Joined, completer: SharedModel) -> Served:
    connection = cast(Connection, joined.model.connection)
    return Served(
        name=joined.name,
        created=int(time.time()),
        tokenizer=joined.tokenizer,
        completer=completer,
        max_positions=joined.model.max_positions,
        end_tokens=_end_tokens(joined),
        look=lambda: connection.client.view,
        aliases=joined.aliases,
        sampling=model_sampling(joined.model.generation_config),
    )


def _end_tokens(joined: Joined) -> frozenset[int]:
    """Those of the model and that of its chats."""
    config = joined.model.generation_config
    given = None if config is None else config.eos_token_id
    listed = given if isinstance(given, list) else [given]
    known = frozenset(int(token) for token in (*listed, joined.tokenizer.eos_token_id) if token is not None)
    return known | ends_of_turns(joined.tokenizer)
