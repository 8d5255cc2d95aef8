"""An adapter that this machine has, for one model: its folder found, read, and checked before anybody is asked."""

from pathlib import Path

from swarm.checkpoint import Checkpoint
from swarm.peft_folder import StoredAdapter, check_base, find_folder, read_folder

__all__ = ["read_adapter"]


def read_adapter(source: str, checkpoint: Checkpoint, *, cache: Path) -> StoredAdapter:
    """`source`: a folder that PEFT wrote, or a hub id. Raises ModelError for one that does not fit `checkpoint`, or
    does what peers can't compute."""
    adapter = read_folder(find_folder(source), checkpoint)
    check_base(adapter, checkpoint, cache=cache)
    return adapter
