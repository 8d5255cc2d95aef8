"""What a shell completes beyond names of commands and options. Light: it runs at every press of Tab."""

import os

from swarm.catalogue import known_names

__all__ = ["complete_model"]


def complete_model(incomplete: str) -> list[str]:
    """Aliases, and what the hub's cache holds; where nothing fits, shells complete files."""
    return [name for name in known_names(os.environ) if name.startswith(incomplete)]
