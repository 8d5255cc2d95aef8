"""What a serving peer says when it begins to serve: the one line for programs, the block of text for people."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peers.executor_settings import Streaming
from swarm.entrance import is_loopback, is_relayed
from swarm.ids import PeerId, Span
from swarm.running import Running

__all__ = ["Ready", "StandingBy", "join_command", "run_command"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """`joinable`: the addresses that the join line names, those worth trying from elsewhere first."""

    peer_id: PeerId
    addresses: tuple[str, ...]
    model: str
    blocks: Span
    num_blocks: int
    reason: str
    precision: str
    precision_reason: str = ""  # a clause
    device: str
    kv_tokens: int
    throughput: float  # decode rows per second through the span
    streaming: Streaming | None = None
    name: str = ""
    private: bool = False  # who joins needs an invite, which is not shown
    adapters: tuple[tuple[str, str], ...] = ()  # that are hosted: names and digests

    @property
    def join(self) -> str:
        return join_command(self.model, self._way_in)

    @property
    def _way_in(self) -> Sequence[str]:
        return ["INVITE"] if self.private else self.addresses

    def running(self, name: str) -> Running:
        """For others on this machine; `name`: the public one."""
        address = next(iter(self.addresses), None)
        return Running.here("peer", models=(self.model,), blocks=str(self.blocks), address=address, name=name)

    def event(self) -> dict[str, Any]:
        """The fields of the JSON line `{"event": "ready", …}`."""
        return {
            "peer_id": self.peer_id,
            "addresses": list(self.addresses),
            "relayed": is_relayed(self.addresses),
            "model": self.model,
            "blocks": [self.blocks.start, self.blocks.end],
            "num_blocks": self.num_blocks,
            "reason": self.reason,
            "precision": self.precision,
            "device": self.device,
            "kv_tokens": self.kv_tokens,
            "throughput": round(self.throughput, 2),
            "streamed_blocks": self.streaming.blocks if self.streaming else 0,
            "adapters": [{"name": name, "digest": digest} for name, digest in self.adapters],
            "join": self.join,
        }

    def text(self) -> str:
        addresses = [f"  {'addresses' if n == 0 else '':<11}{address}" for n, address in enumerate(self.addresses)]
        share = "all" if len(self.blocks) == self.num_blocks else f"{len(self.blocks)} of {self.num_blocks}"
        lines = [
            f"Serving {self.model}",
            "",
            f"  {'peer':<11}{self.peer_id}",
            f"  {'blocks':<11}{self.blocks} ({share}): {self.reason}",
            f"  {'compute':<11}{self.precision} on {self.device}, {self.throughput:.1f} tokens/s through these blocks",
            *([f"  {'':<11}{self.precision}: {self.precision_reason}"] if self.precision_reason else []),
            f"  {'KV cache':<11}{self.kv_tokens} tokens",
            *([f"  {'memory':<11}{self.streaming}"] if self.streaming else []),
            *([f"  {'reached':<11}through relays, since others can't dial it"] if is_relayed(self.addresses) else []),
            *([f"  {'adapters':<11}{', '.join(name for name, _ in self.adapters)}"] if self.adapters else []),
            *addresses,
            "",
            *(
                ["This swarm is private; its owner makes invites: swarm invite --role use (or serve)", ""]
                * self.private
            ),
            "Join with another machine:",
            f"  {self.join}",
            "Ask the swarm something:",
            f"  {run_command(self.model, self._way_in)}",
            "",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingBy:
    """What a peer says when it begins to stand by, or to do so for other blocks."""

    peer_id: PeerId
    addresses: tuple[str, ...]
    model: str
    blocks: Span
    num_blocks: int
    reason: str
    name: str = ""

    def running(self) -> Running:
        """For others on this machine."""
        address = next(iter(self.addresses), None)
        blocks = f"{self.blocks} standby"
        return Running.here("peer", models=(self.model,), blocks=blocks, address=address, name=self.name)

    def event(self) -> dict[str, Any]:
        """The fields of the JSON line `{"event": "standby", …}`."""
        return {
            "peer_id": self.peer_id,
            "addresses": list(self.addresses),
            "model": self.model,
            "blocks": [self.blocks.start, self.blocks.end],
            "num_blocks": self.num_blocks,
            "reason": self.reason,
        }

    def text(self) -> str:
        return (
            f"Standing by for {self.model}: blocks {self.blocks} of {self.num_blocks} are ready on this disk, "
            "and are served as soon as they have too few other peers\n"
        )


def join_command(model: str, addresses: Sequence[str]) -> str:
    return f"swarm-serve {shlex.quote(model)} --initial-peers {_for_elsewhere(addresses)}"


def run_command(model: str, addresses: Sequence[str]) -> str:
    return f'swarm run {shlex.quote(model)} "Hi there" --initial-peers {_for_elsewhere(addresses)}'


def _for_elsewhere(addresses: Sequence[str]) -> str:
    """The address to paste: the first that is not loopback, which would reach nobody from another machine."""
    return next(iter(sorted(addresses, key=is_loopback)), "")
