"""What every object of one answer of OpenAI's APIs has in common."""

import secrets
import time
from dataclasses import dataclass
from typing import Any

from clients.gateway.answer import Usage
from clients.gateway.served import Served

__all__ = ["Stamp", "usage_body"]


@dataclass(frozen=True, slots=True)
class Stamp:
    id: str
    created: int
    model: str
    fingerprint: str  # of the weights

    @classmethod
    def new(cls, prefix: str, served: Served) -> "Stamp":
        fingerprint = f"fp_{served.view.model[:12]}"
        return cls(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), served.name, fingerprint)

    def body(self, kind: str, **more: Any) -> dict[str, Any]:
        """An object of that `kind`."""
        common = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return common | {"system_fingerprint": self.fingerprint} | more


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }
