"""The reference, the text, and a place for figures that are shown at the end."""

from collections.abc import Iterator

import pytest

from tests.real.conftest import cache, checkpoint, local, text
from tests.soak.plans import SEED

__all__ = ["cache", "checkpoint", "figures", "local", "text"]


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines for whoever ran the soak."""
    lines = [f"SWARM_SOAK_SEED={SEED} makes this soak again"]
    yield lines
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    for line in ["", *lines]:
        reporter.write_line(line)
