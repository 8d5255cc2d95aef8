"""What is left of a client that has gone: nothing, neither with itself nor with the peers."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from transformers import LogitsProcessorList

from clients.model import SwarmModelForCausalLM
from tests.real.herd import Herd, wait_until_free
from tests.real.prompts import Text, answers, options
from tests.real.watching import AtToken

NEW = 4


def client_of(herd: Herd) -> SwarmModelForCausalLM:
    return SwarmModelForCausalLM.from_pretrained(herd.checkpoint.folder, initial_peers=herd.addresses, cache=herd.cache)


def use_once(herd: Herd, text: Text) -> None:
    with client_of(herd) as model:
        answers(model, text.prompt(17), **options("greedy", NEW))


def belongings(herd: Herd) -> set[str]:
    """Processes below this one that are no peers, and open sockets."""
    this = psutil.Process()
    peers = {process.pid for process in herd.seen}
    children = {str(child) for child in this.children(recursive=True) if child.pid not in peers}
    return children | {str(connection) for connection in this.net_connections("all")}


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where all temporary things of this process go; a short path, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="own-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_closed_client_leaves_no_process_socket_or_folder(herd: Herd, text: Text, scratch: Path) -> None:
    use_once(herd, text)  # libraries open things of their own, once
    before = belongings(herd)
    use_once(herd, text)
    assert belongings(herd) - before == set()  # what an earlier test left may go at any time
    assert list(scratch.iterdir()) == []


def test_peers_forget_clients_that_stop_or_are_killed_in_mid_answer(
    herd: Herd, model: SwarmModelForCausalLM, text: Text
) -> None:
    folder, peers = str(herd.checkpoint.folder), ",".join(herd.addresses)
    command = [sys.executable, "-m", "swarm", "run", folder, "Tell me a long story.", "--initial-peers", peers]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as client:
        assert client.stdout is not None
        assert client.stdout.read(1), "it ended without a word"
        os.killpg(client.pid, signal.SIGKILL)

    def stop() -> None:
        raise InterruptedError

    logits = LogitsProcessorList([AtToken(2, stop)])
    with client_of(herd) as other, pytest.raises(InterruptedError):
        answers(other, text.prompt(17), logits_processor=logits, **options("greedy", NEW))
    wait_until_free(herd.living, model)
