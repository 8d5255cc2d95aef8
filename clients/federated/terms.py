"""What all members of a run have in common; clients that differ in it never meet."""

import json
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

from clients.federated.rules import RULES, SERVERS
from swarm.errors import UsageError
from swarm.identity import Identity

__all__ = ["MAX_MEMBERS", "Terms"]

MAX_MEMBERS = 64
MAX_ROUNDS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """`name`: whoever knows it may take part. `training`: the settings that shape the adapter and its training.
    `size`: numbers of the adapter. `clip`: the longest change of a member, as an L2 norm. `most_tokens`: that
    a member's change may count for. `noise`: deviation of what each member adds to its change, in units of `clip`.
    `wait`: seconds for others' changes after one's own, `settle` for others' answers about them. Raises UsageError."""

    name: str
    training: dict[str, Any] = field(default_factory=dict)
    size: int
    rounds: int = 10
    rule: str = "mean"
    server: str = "avg"
    server_rate: float = 1.0
    clip: float = 10.0
    most_tokens: int = 1 << 30
    noise: float = 0.0
    min_members: int = 2
    wait: float = 60.0
    settle: float = 10.0

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 256:
            raise UsageError("--join takes the name of a run, of at most 256 characters")
        if self.rule not in RULES:
            raise UsageError(f"--rule is one of {', '.join(RULES)}, not '{self.rule}'")
        if self.server not in SERVERS:
            raise UsageError(f"--server is one of {', '.join(SERVERS)}, not '{self.server}'")
        if not 1 <= self.rounds <= MAX_ROUNDS:
            raise UsageError(f"--rounds is a number in 1..{MAX_ROUNDS}, not {self.rounds}")
        if not 1 <= self.min_members <= MAX_MEMBERS:
            raise UsageError(f"--min-members is a number in 1..{MAX_MEMBERS}, not {self.min_members}")
        if min(self.clip, self.server_rate, self.wait, self.settle) <= 0 or self.noise < 0:
            raise UsageError("--clip, --server-rate and --wait are above zero, and --noise is not below")

    @property
    def key(self) -> bytes:
        """32 bytes that only who knows the name and agrees to all the rest can compute."""
        text = json.dumps(asdict(self), sort_keys=True, default=list)
        return blake2b(text.encode(), digest_size=32, person=b"swarm run").digest()

    @property
    def run(self) -> Identity:
        """What all members can sign as, and nobody else: under it they find each other."""
        return Identity.derived(blake2b(self.key, digest_size=32, person=b"swarm members").digest())

    @property
    def delta_bytes(self) -> int:
        return 4 * self.size
