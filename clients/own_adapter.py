"""The adapter that somebody names for one model: read from a folder of this machine, or hosted by peers."""

from collections.abc import Mapping
from pathlib import Path

from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import Checkpoint, resolve
from swarm.errors import UsageError
from swarm.ids import ADAPTER_NAME
from swarm.peft_folder import StoredAdapter, check_base, find_folder, read_folder
from swarm.training import PackedAdapter

__all__ = ["Choice", "read_adapter"]


def read_adapter(source: str, checkpoint: Checkpoint, *, cache: Path) -> StoredAdapter:
    """`source`: a folder that PEFT wrote, or a hub id. Raises ModelError for one that does not fit `checkpoint`, or
    does what peers can't compute."""
    adapter = read_folder(find_folder(source), checkpoint)
    check_base(adapter, checkpoint, cache=cache)
    return adapter


class Choice:
    """What `source` means: a folder, a hub id, or else the name of an adapter that peers host. None: no adapter.
    `blocks` are what rows are computed with, where it is on this machine."""

    def __init__(self, source: str | None, model: str, *, cache: Path) -> None:
        """Reads it, if it is here. Raises ModelError."""
        self.blocks: Mapping[int, PackedAdapter] | None = None
        self._hosted: str | None = None
        if source is not None and _may_be_hosted(source):
            self._hosted = source
        elif source is not None:
            self.blocks = read_adapter(source, resolve(model, cache=cache), cache=cache).blocks

    def load(self, model: SwarmModelForCausalLM) -> None:
        """Have `model` generate with what peers host, if that is what is meant. Raises SwarmError."""
        if self._hosted is None:
            return
        try:
            model.load_hosted_adapter(self._hosted)
        except UsageError as error:
            raise UsageError(f"there is no folder '{self._hosted}' here, and {error}") from None


def _may_be_hosted(source: str) -> bool:
    name, _, _ = source.partition("@")
    return ADAPTER_NAME.fullmatch(name) is not None and not Path(source).expanduser().is_dir()
