"""A network of a few hosts, where one can be made."""

from collections.abc import Iterator

import pytest

from tests.wan.namespace import why_not
from tests.wan.wan import Wan


@pytest.fixture(scope="package")
def able() -> None:
    """Skips, with the reason, where there can be no hosts."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"no wide-area network on this machine: {reason}")


@pytest.fixture
def wan(able: None) -> Iterator[Wan]:
    """Without delays, and nobody in it yet."""
    with Wan() as wan:
        yield wan
