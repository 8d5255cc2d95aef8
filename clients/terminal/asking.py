"""One question through a gateway, and its answer on stdout: as it comes, or as one JSON object at the end."""

import json
import sys

from rich.console import Console

from clients.terminal.by_http import ByHttp
from clients.terminal.conversation import Choosing, Conversation
from clients.terminal.screen import PlainScreen, Stats, show

__all__ = ["ask"]


def ask(
    url: str,
    model: str,
    text: str,
    *,
    system: str | None,
    choosing: Choosing,
    api_key: str | None,
    patience: float,
    as_json: bool,
) -> None:
    """Raises SwarmError."""
    backend = ByHttp(url, model, api_key=api_key, patience=patience)
    try:
        happenings = backend.answer(Conversation(system or "").asked(text).messages, choosing)
        if as_json:
            stats, pieces = Stats(), []
            for happening in happenings:
                stats.hear(happening)
                pieces.append(getattr(happening, "text", ""))
            _print(model, "".join(pieces), stats)
            return
        quiet = not sys.stderr.isatty()
        screen = PlainScreen(Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet))
        for _ in show(happenings, screen, Stats()):
            pass
    finally:
        backend.close()


def _print(model: str, text: str, stats: Stats) -> None:
    ended = stats.ended
    chain = [{"peer": hop.name, "blocks": hop.blocks} for hop in (stats.chain.hops if stats.chain else ())]
    counted = (
        {}
        if ended is None
        else {"finish_reason": ended.reason, "prompt_tokens": ended.prompt, "new_tokens": ended.tokens}
    )
    sys.stdout.write(json.dumps({"text": text, "model": model, "chain": chain, **counted}) + "\n")
