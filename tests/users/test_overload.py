"""More users than a peer has room for."""

import threading
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from clients.events import Event, Waiting
from clients.model import SwarmModelForCausalLM
from swarm.subprocesses import ServeProcess

SESSIONS = 200
PROMPT, NEW = 20, 12  # a row takes a twentieth of what the peer can keep
OPTIONS = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}


def test_two_hundred_sessions_share_room_for_twenty(model: Path, cache: Path, peer: ServeProcess) -> None:
    prompts = [torch.randint(3, 128, (1, PROMPT), generator=torch.manual_seed(i)) for i in range(SESSIONS)]
    answers: dict[int, Tensor] = {}
    events: list[Event] = []
    options = {"initial_peers": peer.ready.addresses, "cache": cache, "patience": 100.0, "observer": events.append}
    with SwarmModelForCausalLM.from_pretrained(model, **options) as swarm_model:

        def ask(index: int) -> None:
            answers[index] = swarm_model.generate(prompts[index], **OPTIONS)

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(SESSIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert any(isinstance(event, Waiting) for event in events)  # there was not room for all at once
    local = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    wrong = [i for i, p in enumerate(prompts) if not torch.equal(answers[i], local.generate(p, **OPTIONS))]
    assert wrong == []
