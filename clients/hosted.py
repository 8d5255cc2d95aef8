"""Adapters that peers host, as a model's user chooses them: in PEFT's words, without any tensor on this machine."""

from abc import abstractmethod
from typing import Any

from clients.cache import Opener
from clients.training.adapters import Adapters
from routing.hosting import Hosted
from swarm.errors import UsageError
from swarm.training import PackedAdapter

__all__ = ["HostedAdapters"]


class HostedAdapters:
    """A part of `SwarmModelForCausalLM`. What is chosen holds for what begins afterwards, in all threads."""

    _found: dict[str, Hosted]  # what was loaded, by the name that the user gave
    _chosen: str | None

    @property
    @abstractmethod
    def connection(self) -> Opener: ...

    def load_hosted_adapter(self, name: str) -> None:
        """Generate with an adapter that peers host under `name`; NAME@DIGEST says which, where several are called so.

        Only peers that host it compute then, every one the same version; what replaces a lost peer hosts it too. Raises
        UsageError where nobody hosts it, MissingBlocks where some block lacks a host."""
        connection = self.connection
        self._found[name] = connection.submit(connection.hosted(name)).result()
        self._chosen = name

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """Choose among the adapters that were loaded: one that peers host, or, as the library has it, of one's own."""
        if isinstance(adapter_name, str) and adapter_name in self._found:
            self._chosen = adapter_name
        elif getattr(self, "_hf_peft_config_loaded", False):
            self._chosen = None
            super().set_adapter(adapter_name)  # type: ignore[misc]
        else:
            raise UsageError(f"no adapter '{adapter_name}' is loaded: model.load_hosted_adapter(name) does that")

    def disable_adapters(self) -> None:
        """Generate as the model alone does, until `set_adapter`."""
        self._chosen = None
        if getattr(self, "_hf_peft_config_loaded", False):
            super().disable_adapters()  # type: ignore[misc]

    def active_adapters(self) -> list[str]:
        if self._chosen is not None:
            return [self._chosen]
        found: list[str] = super().active_adapters() if getattr(self, "_hf_peft_config_loaded", False) else []  # type: ignore[misc]
        return found

    @property
    def hosted_adapter(self) -> Hosted | None:
        """The adapter that peers host and this model generates with."""
        return None if self._chosen is None else self._found[self._chosen]

    def _adapting(self, adapters: Adapters) -> dict[str, Any]:
        """With what rows are computed: the arguments of `SwarmCache.adapt`. Raises UsageError."""
        packed: dict[int, PackedAdapter] = adapters.pack()
        hosted = self.hosted_adapter
        if packed and hosted is not None:
            raise UsageError(
                f"the adapter {hosted} of peers and one of your own are both active: model.disable_adapters() leaves "
                "the first, PEFT's disable_adapter() the second"
            )
        return {"adapters": packed, "hosted": None if hosted is None else hosted.digest}
