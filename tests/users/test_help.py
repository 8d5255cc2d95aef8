import subprocess
import sys

import pytest

from swarm.cli import COMMANDS

HEAVY = ("torch", "transformers", "hivemind")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_heavy(name: str) -> None:
    code = (
        "import sys; from swarm.cli import run; "
        f"assert run([{name!r}, '--help']) == 0; print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
