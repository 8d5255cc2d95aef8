"""What a peer gives to fine-tuning."""

from dataclasses import dataclass

from swarm.errors import UsageError

__all__ = ["TrainingLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLimits:
    """`share`: of the device's time, while others generate here; 0 for none at all. `kept_bytes`: of what is held for
    going backward, over all sessions; what is beyond it is computed again."""

    share: float = 0.1
    kept_bytes: int = 1 << 30
    adapter_bytes: int = 256 << 20  # of all adapters of one session
    max_sessions: int = 16
    max_sessions_per_owner: int = 4
    max_tokens: int = 8192  # of one micro-batch
    waiting_frames: int = 64  # of one session
    waiting_bytes: int = 256 << 20  # of all sessions

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"the share of time for training is between 0 and 1, not {self.share:g}")
