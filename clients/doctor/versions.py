"""Python, and what is installed: against what this package itself asks for."""

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from clients.doctor.finding import Finding, fail, fine, skipped

__all__ = ["PACKAGE", "packages", "python"]

PACKAGE = "swarm-peers"
SHOWN = ("torch", "transformers", "hivemind", "protobuf")


def python() -> Finding:
    running = ".".join(map(str, sys.version_info[:3]))
    try:
        wanted = metadata(PACKAGE)["Requires-Python"] or ""
    except PackageNotFoundError:
        return skipped("Python", f"{running}; {PACKAGE} is not installed, so nobody says which it needs")
    if running not in SpecifierSet(wanted):
        return fail("Python", f"this is Python {running}, and {wanted} is needed", "install a newer Python")
    return fine("Python", running)


def packages(requirements: Sequence[str] | None = None) -> list[Finding]:
    """By default those that the installed package names."""
    if requirements is None:
        try:
            requirements = requires(PACKAGE) or ()
        except PackageNotFoundError:
            return [skipped("packages", f"{PACKAGE} is not installed, so nobody says what it needs")]
    wanted = [Requirement(text) for text in requirements]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [finding for one in wanted if (finding := _check(one)) is not None]
    if wrong:
        return wrong
    shown = [one.name for one in wanted if one.name in SHOWN]
    return [fine("packages", ", ".join(f"{name} {version(name)}" for name in shown) or "all are as wanted")]


def _check(wanted: Requirement) -> Finding | None:
    todo = f"run: pip install '{wanted.name}{wanted.specifier}'"
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return fail("packages", f"{wanted.name} is not installed", todo)
    if not wanted.specifier.contains(found, prereleases=True):
        return fail("packages", f"{wanted.name} is {found}, and {wanted.specifier} is needed", todo)
    return None
