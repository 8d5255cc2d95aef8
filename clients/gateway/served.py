"""The models that a gateway answers for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from clients.completion.generation import Completer
from clients.completion.request import Sampling
from clients.gateway.errors import ApiError
from routing.view import View, runs
from swarm.errors import UsageError
from swarm.ids import PeerId, Span
from swarm.record import PeerRecord
from swarm.terminal import plain

__all__ = ["Hosting", "Models", "Served", "Tokenizer"]

Tokenizer = Any  # transformers' tokenizers share no type that says what we use
NAME_LENGTH = 40  # characters of a peer's name that are shown


@dataclass(frozen=True, slots=True)
class Served:
    """One model. `look` gives the latest view of its peers, from any thread and without waiting."""

    name: str  # as requests name it
    created: int  # Unix time since when it is served here
    tokenizer: Tokenizer
    completer: Completer
    max_positions: int  # prompt and answer together, in tokens
    end_tokens: frozenset[int]  # each ends an answer
    look: Callable[[], View]
    aliases: tuple[str, ...] = ()  # other names for it
    sampling: Sampling = field(default_factory=Sampling)  # where a request does not say
    adapter: str | None = None  # its name is then that of its base, a colon and this
    hosted: bool = False  # peers have the adapter, and have named it

    @property
    def base(self) -> str:
        """The name of the model that peers compute, without what an adapter changes."""
        return self.name if self.adapter is None else self.name.removesuffix(f":{self.adapter}")

    @property
    def label(self) -> str:
        """As figures are told: what strangers name counts as its base's."""
        return self.base if self.hosted else self.name

    @property
    def view(self) -> View:
        return self.look()

    @property
    def records(self) -> tuple[PeerRecord, ...]:
        """Those of peers that were heard of lately, sorted by peer id."""
        return self.view.peers

    def trouble(self) -> str | None:
        """Why it can't answer now, in a sentence; None when it can."""
        view = self.view
        missing = view.missing(Span(0, view.num_blocks))
        if not missing:
            return None
        if len(missing) == view.num_blocks:
            return f"no peer serves {self.name} at the moment"
        spans = ", ".join(map(str, runs(missing)))
        return f"no peer serves the blocks {spans} of {self.name} at the moment"

    def peer_name(self, peer: PeerId) -> str:
        """The name that a peer gave itself, made plain, else the end of its id. A stranger chose it: escape it."""
        record = self.view.get(peer)
        return plain(record.public_name, NAME_LENGTH) if record and record.public_name else peer[-8:]


class Hosting(Protocol):
    """The adapters that the peers of one model host."""

    def listed(self) -> list[Served]: ...
    def get(self, name: str) -> Served:
        """Raises UsageError, MissingBlocks."""
        ...


class Models:
    """Those of one gateway, by name; the first is the one that a page offers first."""

    def __init__(self, served: Iterable[Served], hosted: Mapping[str, Hosting] | None = None) -> None:
        """`hosted`: by the name of a model, the adapters that its peers host."""
        self._by_name = {one.name: one for one in served}
        aliases = {alias: one for one in self._by_name.values() for alias in one.aliases}
        self._by_any_name = aliases | self._by_name
        self._hosted = dict(hosted or {})

    def get(self, name: str) -> Served:
        """By name, by alias, or by either in other letter cases where that means one model alone. Raises ApiError 404
        for one that is not served here."""
        if (served := self._by_any_name.get(name)) is not None:
            return served
        alike = {one.name: one for known, one in self._by_any_name.items() if known.casefold() == name.casefold()}
        if len(alike) == 1:
            return next(iter(alike.values()))
        return self._get_hosted(name)

    def _get_hosted(self, name: str) -> Served:
        """Raises ApiError 404, and MissingBlocks where some block lacks a host."""
        base, _, adapter = name.rpartition(":")
        known = self._by_any_name.get(base)
        hosting = self._hosted.get(known.name) if known is not None else None
        said = self._absent(name)
        if hosting is not None:
            try:
                return hosting.get(adapter)
            except UsageError as error:
                said = f"{said}; {error}"
        raise ApiError(
            404,
            said,
            type="invalid_request_error",  # as openai's own, which is no "not found"
            code="model_not_found",
            param="model",
        )

    def _absent(self, name: str) -> str:
        """A sentence on what there is instead."""
        base, _, adapter = name.rpartition(":")
        known = self._by_any_name.get(base)
        if known is None:
            return f"The model '{plain(name, 80)}' is not served here; served are: {', '.join(self._by_name) or 'none'}"
        beside = ", ".join(one.name for one in self if one.base == known.base and one.adapter) or "none"
        return f"{known.base} has no adapter '{plain(adapter, 80)}' here; with an adapter are served: {beside}"

    def __iter__(self) -> Iterator[Served]:
        """What is served here, and what peers host now."""
        yield from self._by_name.values()
        for hosting in self._hosted.values():
            yield from hosting.listed()

    def __len__(self) -> int:
        return len(self._by_name)
