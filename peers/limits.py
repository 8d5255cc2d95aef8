"""What an engine lets strangers use; every queue and every wait of a hop has its bound here."""

from dataclasses import dataclass, fields

from swarm.errors import UsageError
from swarm.wire import MAX_FRAME

__all__ = ["EngineLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    max_sessions: int = 1024
    max_sessions_per_owner: int = 256
    max_rows_per_session: int = 256
    max_lease: int = 1 << 20  # tokens that one session may reserve
    batch_tokens: int = 512  # of one pass through the span
    prompt_tokens: int = 128  # of prompts in a pass that also decodes, so that nobody's next token waits long
    decode_tokens: int = 16  # a step with at most this many new tokens in each row counts as decoding
    idle_seconds: float = 300.0  # a session that nobody has spoken to for so long is freed
    retry_seconds: float = 1.0  # when to ask again, says a Busy
    inbox_frames: int = 1024  # that wait for one session
    inbox_bytes: int = 128 << 20  # of the frames that wait for one session
    total_inbox_bytes: int = 512 << 20  # of all frames that wait
    unread_bytes: int = 64 << 20  # of frames of one peer that are not even read, because it brings so many
    frame_bytes: int = 4 << 20  # of hidden states in one frame that is sent
    adapter_bytes: int = 256 << 20  # of one client's adapters to generate with
    total_adapter_bytes: int = 1 << 30  # of all clients'
    fitted_bytes: int = 2 << 30  # of the same once more, as sessions compute with them

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) <= 0:
                raise UsageError(f"{each.name} is more than zero, not {getattr(self, each.name)}")
        if self.batch_tokens < 2:
            raise UsageError("batch_tokens is 2 at least: one to decode and one of a prompt")
        if self.frame_bytes > MAX_FRAME // 2:
            raise UsageError(f"frame_bytes is at most half of the largest frame, {MAX_FRAME // 2}")
