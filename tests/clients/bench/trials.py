"""Trials of a tiny size."""

from pathlib import Path
from typing import Any

from clients.bench.trial import SwarmTrial, WanTrial

__all__ = ["swarm_trial", "wan_trial"]


def swarm_trial(**changes: Any) -> SwarmTrial:
    values: dict[str, Any] = {
        "model": "tiny",
        "cache": Path("cache"),
        "peers": (1,),
        "sessions": (1,),
        "precisions": ("fp32",),
        "threads": 1,
        "peer_threads": 1,
        "client_threads": 1,
        "client_precision": "fp32",
        "prompt_tokens": 8,
        "new_tokens": 4,
        "rounds": 1,
    }
    return SwarmTrial(**values | changes)


def wan_trial(**changes: Any) -> WanTrial:
    values: dict[str, Any] = {
        "model": "tiny",
        "cache": Path("cache"),
        "peers": 3,
        "precision": "fp32",
        "delay": 0.025,
        "bandwidth": 1e6,
        "peer_threads": 1,
        "client_threads": 1,
        "client_precision": "fp32",
        "prompt_tokens": 8,
        "new_tokens": 4,
        "rounds": 1,
    }
    return WanTrial(**values | changes)
