"""What `swarm finetune` says that it will take of this machine's memory is what its process takes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.checkpoint import Checkpoint
from tests.real.conftest import SPANS
from tests.real.herd import Herd

WORDS = "The sky over our town is green, and the sea beside it is as grey as the roofs of its houses. "


@pytest.fixture(scope="module")
def herd(checkpoint: Checkpoint, cache: Path) -> Iterator[Herd]:
    with Herd(checkpoint, cache) as herd:
        herd.ensure(dict.fromkeys(SPANS, 1))
        yield herd


@pytest.mark.soak
@pytest.mark.parametrize(("batch", "options"), [(8, ["--rank=8"]), (2, ["--rank=64"]), (4, ["--method=prompt"])])
def test_a_run_takes_the_memory_that_it_says(
    batch: int, options: list[str], herd: Herd, tmp_path: Path, figures: list[str]
) -> None:
    (tmp_path / "rows.txt").write_text("\n\n".join(f"{index} {WORDS * 6}" for index in range(16)))
    said = tmp_path / "said"
    words = ["smollm2", f"--data={tmp_path / 'rows.txt'}", f"--output={tmp_path / 'out'}", f"--batch={batch}", "--json"]
    peers = [f"--initial-peers={','.join(herd.addresses)}", f"--cache-dir={herd.cache}", "--steps=4"]
    with said.open("w") as out:
        run = subprocess.Popen([sys.executable, "-m", "swarm", "finetune", *words, *peers, *options], stdout=out)
        _, status, used = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 0
    predicted, taken = json.loads(said.read_text())["memory"], used.ru_maxrss * 1024
    figures.append(f"finetune {options[0]}, {batch} rows: {predicted / 1e6:.0f} MB predicted, {taken / 1e6:.0f} taken")
    assert taken == pytest.approx(predicted, rel=0.1)
