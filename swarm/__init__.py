"""swarm: strangers' machines together run language models that none of them could hold.

Floor 0: identity, transport, directory, records, wire, codecs, model checkpoints, and the front door. Imports nothing
from the floors above; the public names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from swarm.version import __version__

if TYPE_CHECKING:
    from clients.model import SwarmModelForCausalLM

__all__ = ["SwarmModelForCausalLM", "__version__"]

_LAZY = {"SwarmModelForCausalLM": "clients.model"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'swarm' has no attribute {name!r}")
