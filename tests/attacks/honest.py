"""An honest client: answers one prompt after the other and says when each token came, and what the answer was.

Arguments: folder of the model, cache, an address, tokens of an answer. One JSON object a line on stdout; it ends with
its stdin.
"""

import json
import sys
import threading
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, LogitsProcessor, LogitsProcessorList

from clients.events import PeerLost
from clients.model import SwarmModelForCausalLM
from tests.real.prompts import Text, answers, options

PROMPT = 32
PATIENCE = 60.0


class Times(LogitsProcessor):  # type: ignore[no-untyped-call]
    """When the outputs of each token came, seconds of the system's monotonic clock."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.times.append(time.monotonic())
        return scores


def main(folder: str, cache: str, address: str, new: str) -> None:
    torch.set_num_threads(1)
    text = Text(AutoTokenizer.from_pretrained(folder))
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    losses: list[str] = []

    def hear(event: object) -> None:
        if isinstance(event, PeerLost):
            losses.append(str(event))

    with SwarmModelForCausalLM.from_pretrained(
        folder, initial_peers=[address], cache=Path(cache), patience=PATIENCE, observer=hear, audit_rate=0.0
    ) as model:
        number = 0
        while not over.is_set():
            losses.clear()
            seen, began = Times(), time.monotonic()
            try:
                # another text each time, so that the peer has to compute it
                answer = answers(
                    model,
                    text.batch([PROMPT], number),
                    logits_processor=LogitsProcessorList([seen]),
                    **options("greedy", int(new)),
                )
            except Exception as error:  # is what the soak looks for
                said: dict[str, object] = {
                    "number": number,
                    "began": began,
                    "error": f"{type(error).__name__}: {error}",
                }
            else:
                said = {"number": number, "began": began, "times": seen.times, "answer": answer[0]}
            print(json.dumps({**said, "lost": losses}), flush=True)
            number += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
