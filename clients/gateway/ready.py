"""What a gateway says when it is up: the fields of one line for programs, a block of text for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swarm.running import Running

__all__ = ["ReadyGateway", "ReadyModel"]

OPEN = (
    "anyone who can reach this machine may use this gateway, at the cost of its swarm; give --api-key, "
    "or leave --host at 127.0.0.1"
)
CLEAR = "keys and chats travel unencrypted; give --tls-cert and --tls-key, or put a proxy with TLS before it"


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """`trouble`: why it can't answer yet; None when it can."""

    name: str
    trouble: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyGateway:
    """`local`: whether only this machine can connect."""

    host: str
    port: int
    tls: bool
    local: bool
    keys: int
    models: Sequence[ReadyModel]

    @property
    def url(self) -> str:
        """Without a slash at its end; as this machine can reach it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host).strip("[]")
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{shown}:{self.port}"

    def warnings(self) -> list[str]:
        """Sentences on what being reachable means."""
        if self.local:
            return []
        return [*([] if self.keys else [OPEN]), *([] if self.tls else [CLEAR])]

    def running(self) -> Running:
        """For others on this machine."""
        return Running.here("gateway", models=tuple(model.name for model in self.models), address=self.url)

    def event(self) -> dict[str, Any]:
        """The fields of the JSON line `{"event": "ready", …}`."""
        return {
            "url": self.url,
            "base_url": f"{self.url}/v1",
            "port": self.port,
            "keys": self.keys,
            "models": [
                {"id": model.name, "ready": model.trouble is None, "reason": model.trouble} for model in self.models
            ],
        }

    def text(self) -> str:
        models = [f"{model.name}{f' (not yet: {model.trouble})' if model.trouble else ''}" for model in self.models]
        listed = [f"  {'models' if n == 0 else '':<11}{line}" for n, line in enumerate(models)]
        key = "YOUR-KEY" if self.keys else "none"
        lines = [
            f"Gateway to {', '.join(model.name for model in self.models)}",
            "",
            f"  {'page':<11}{self.url}/",
            f"  {'swarm':<11}{self.url}/swarm",
            f"  {'API':<11}{self.url}/v1",
            *listed,
            f"  {'API keys':<11}{self.keys or 'none: anyone who can connect may ask'}",
            "",
            "For programs that speak OpenAI's API:",
            f"  export OPENAI_BASE_URL={self.url}/v1 OPENAI_API_KEY={key}",
            "",
        ]
        return "\n".join(lines)
