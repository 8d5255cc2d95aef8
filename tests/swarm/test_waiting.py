"""How threads wait for each other is said where nobody has said it."""

import os
import subprocess
import sys

from swarm.waiting import BRIEF, wait_briefly


def test_threads_spin_briefly_unless_the_user_has_said_something() -> None:
    environment = {"HOME": "/"}
    wait_briefly(environment)
    assert environment == {"HOME": "/", **BRIEF}
    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "5")):
        own = {name: value}
        wait_briefly(own)
        assert own == {name: value}


def test_openmp_takes_it() -> None:
    """As it says itself, where it is GCC's."""
    shown = subprocess.run(
        [sys.executable, "-c", "import torch"],
        env={**os.environ, **BRIEF, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    if "GOMP_SPINCOUNT" in shown:
        assert f"GOMP_SPINCOUNT = '{BRIEF['GOMP_SPINCOUNT']}'" in shown
    else:
        assert "OMP_WAIT_POLICY" in shown
