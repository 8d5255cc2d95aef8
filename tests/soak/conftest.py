"""The reference, the text, and a place for figures that are shown at the end."""

import pytest

from tests.real.conftest import cache, checkpoint, local, text
from tests.soak.plans import SEED

__all__ = ["cache", "checkpoint", "figures", "local", "text"]

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines for whoever ran the soak, written below its results."""
    return request.config.stash.setdefault(FIGURES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(FIGURES, [])
    if lines:
        terminalreporter.section("soak")
        for line in [*lines, f"SWARM_SOAK_SEED={SEED} makes this soak again"]:
            terminalreporter.write_line(line)
