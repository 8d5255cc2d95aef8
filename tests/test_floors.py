"""Imports point down only: DESIGN's floors, read off the source of every module."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {"swarm": 0, "routing": 1, "fault": 2, "clients": 3, "peers": 3}
# Routing comes as values in and values out: nothing that computes tensors, talks to the network or knows the time.
IMPURE = {"asyncio", "hivemind", "socket", "time", "torch", "transformers"}
HEAVY = {"hivemind", "numpy", "torch", "transformers"}
MODULES = sorted(path for folder in FLOORS for path in (ROOT / folder).rglob("*.py"))


def imported(tree: ast.AST, package: tuple[str, ...] = ()) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that the code of a module in `package` imports, when loaded or later. What
    only type checkers read (`if TYPE_CHECKING:`) is not imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imported(other, package)
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield node.lineno, ".".join([*base, *filter(None, [node.module])])
        yield from imported(node, package)


def violations(source: str, package: tuple[str, ...]) -> list[str]:
    """What `source`, a module of `package`, imports that its floor does not allow, as sentences."""
    here = package[0]
    found = []
    for line, name in imported(ast.parse(source), package):
        top = name.partition(".")[0]
        if top != here and top in FLOORS and FLOORS[top] >= FLOORS[here]:
            found.append(f"line {line}: {here} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[top]})")
        if here == "routing" and top in IMPURE:
            found.append(f"line {line}: routing is pure and imports {name}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parent.parts
    assert violations(path.read_text(), package) == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("swarm", "from routing.view import View"),
        ("swarm", "def late():\n    import clients.model"),
        ("routing", "import fault"),
        ("clients", "from peers.serve import serve"),
        ("peers", "import clients.model as model"),
        ("routing", "import time"),
        ("routing", "from torch import Tensor"),
    ],
)
def test_import_that_points_up_or_aside_is_found(package: str, source: str) -> None:
    assert len(violations(source, (package,))) == 1


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("clients", "from swarm.ids import Span\nimport fault.detector, routing.view"),
        ("peers", "from . import batch\nfrom .batch import Batch"),
        ("swarm", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from clients.model import Model"),
    ],
)
def test_import_that_points_down_is_allowed(package: str, source: str) -> None:
    assert violations(source, (package,)) == []


def test_relative_import_is_resolved() -> None:
    assert list(imported(ast.parse("from ..peers import node"), ("clients", "web"))) == [(1, "clients.peers")]
    assert list(imported(ast.parse("from .node import Node"), ("clients", "web"))) == [(1, "clients.web.node")]


@pytest.mark.parametrize(
    "code",
    [
        "import swarm",
        "import swarm.cli, swarm.settings, swarm.terminal",
        "from swarm.cli import run; assert run(['--help']) == 0",
        "from swarm.cli import run; assert run(['--version']) == 0",
    ],
)
def test_front_door_loads_nothing_heavy(code: str) -> None:
    check = f"{code}\nimport sys\nprint(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
