"""Fixtures that every folder of tests may use."""

import logging
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from xdist.remote import Producer

    from swarm.checkpoint import Checkpoint
    from tests.memory_swarm import Reference
    from tests.workers import Shares


# No test depends on how fast the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure() -> None:
    """A shell has its background jobs ignore interrupts, and with them all that tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "Shares":
    """What `-n 2` does with tests."""
    from tests.workers import Shares  # here, since xdist is only loaded to be used

    return Shares(config, log)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Whatever a test sets up of the log is gone afterwards, as a command that it calls does."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> "Checkpoint":
    """A tiny random Llama of 4 blocks."""
    from swarm.checkpoint import resolve  # here, since not every test needs torch
    from tests.models import tiny_model

    folder = tmp_path_factory.mktemp("models")
    return resolve(str(tiny_model("llama", folder / "llama")), cache=folder / "cache")


@pytest.fixture(scope="session")
def reference(checkpoint: "Checkpoint") -> "Reference":
    """The same blocks in one piece."""
    from tests.memory_swarm import Reference

    return Reference(checkpoint)
