"""An adapter hosted by a real peer: the command's options, the files, the network, the tokens."""

import asyncio
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from clients.drawing import as_json
from clients.model import SwarmModelForCausalLM
from clients.status import read_swarm
from tests.clients.training.adapted import adapted
from tests.models import tiny_model
from tests.processes import ServePeer

PROMPT = torch.arange(3, 12)[None]
CONFIG = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
NEW = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


def test_peer_hosts_an_adapter_for_who_asks_by_its_name(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "llama")
    local = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    adapted(local, CONFIG).save_pretrained(tmp_path / "style")
    local = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = PeftModel.from_pretrained(local, str(tmp_path / "style")).generate(PROMPT, **NEW).tolist()
    options = ("--adapters", str(tmp_path / "style"), "--adapters", f"tone={tmp_path / 'style'}")
    with ServePeer(folder, "--cache-dir", str(tmp_path / "cache"), *options, blocks="0:4") as peer:
        peer.wait_ready()
        records = asyncio.run(read_swarm(peer.addresses, 30))
        (known,) = as_json(records, time.time())["models"][0]["peers"]
        assert [adapter["name"] for adapter in known["adapters"]] == ["style", "tone"]
        with SwarmModelForCausalLM.from_pretrained(
            folder, initial_peers=peer.addresses, cache=tmp_path / "cache", adapter="tone"
        ) as model:
            assert model.generate(PROMPT, **NEW).tolist() == expected
