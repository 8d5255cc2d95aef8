import subprocess
import sys

import pytest

from swarm.cli import COMMANDS, Entry

HEAVY = ("torch", "transformers", "hivemind")


WORDS = [
    [name, *more]
    for name, entry in COMMANDS.items()
    for more in ([[]] if isinstance(entry, Entry) else [[], *([sub] for sub in entry.commands)])
]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from swarm.cli import run; "
        f"assert run([*{words!r}, '--help']) == 0; print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
