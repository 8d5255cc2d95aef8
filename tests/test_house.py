"""What the front pages say is true: commands, options, files and versions that they name exist."""

import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from swarm.catalogue import CATALOGUE
from swarm.cli import COMMANDS, Entry, Group, load_command
from swarm.messages import FaultCode, Message
from swarm.version import __version__

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GLOBAL_OPTIONS = {"--help", "--version", "--debug", "--config"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def shell_lines(page: Path) -> list[str]:
    """Commands in the page's fenced shell code, comments removed."""
    code = "\n".join(body for language, body in FENCE.findall(page.read_text()) if language == "sh")
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]


def options_of(command: str, entry: Entry) -> set[str]:
    return {name for param in load_command(command, entry).params for name in param.opts} | GLOBAL_OPTIONS


def problem(line: str) -> str | None:
    """What is wrong with one line of shell, in words; None when all it names exists."""
    words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    match words:
        case ["make", *targets]:
            unknown = set(targets) - set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
            return f"make has no target {unknown}" if unknown else None
        case ["python", script, *_]:
            return None if (ROOT / script).exists() else f"there is no {script}"
        case ["swarm-serve", *rest]:
            return _unknown_options(["serve", *rest])
        case ["swarm", option] if option.startswith("-"):
            return None if option in GLOBAL_OPTIONS else f"swarm has no option {option}"
        case ["swarm", *rest]:
            return _unknown_options(rest)
    return f"nobody knows how to check {words[:1]}"


def _unknown_options(words: list[str]) -> str | None:
    """`words`: what follows `swarm`."""
    commands: Mapping[str, Entry | Group] = COMMANDS
    command, rest = "", words
    while rest:
        command, rest = f"{command} {rest[0]}".strip(), rest[1:]
        entry = commands.get(command.rpartition(" ")[2])
        if entry is None:
            return f"swarm has no command {command}"
        if isinstance(entry, Entry):
            unknown = {word.partition("=")[0] for word in rest if word.startswith("--")} - options_of(command, entry)
            return f"swarm {command} has no option {unknown}" if unknown else None
        if rest and rest[0] in GLOBAL_OPTIONS:
            return None
        commands = entry.commands
    return f"swarm {command} needs another word"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_fenced_code_exist(page: Path) -> None:
    assert [found for line in shell_lines(page) if (found := problem(line))] == []


@pytest.mark.parametrize(
    "line",
    [
        "make coffee",
        "swarm fly",
        "swarm bench fly",
        "swarm bench wan --no-such",
        "swarm status --no-such x",
        "swarm-serve m --no-such",
        "swarm --no-such",
        "python docs/no-such.py",
        "rm -r /",
    ],
)
def test_command_that_does_not_exist_is_found(line: str) -> None:
    assert problem(line) is not None


def test_readme_begins_with_its_two_commands() -> None:
    assert [shlex.split(line, comments=True) for line in shell_lines(ROOT / "README.md")[:2]] == [
        ["make", "demo"],
        ["make", "test"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_fenced_code_compiles(page: Path) -> None:
    for language, body in FENCE.findall(page.read_text()):
        if language == "python":
            compile(body, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_point_to_exist(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / link for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", text)]
    named = [ROOT / name for name in re.findall(r"`((?:swarm|routing|fault|clients|peers|tests|docs)/[\w/.]*)`", text)]
    assert [str(path) for path in (*links, *named) if not path.exists()] == []


def test_every_page_of_the_docs_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    assert {page.name for page in (ROOT / "docs").glob("*.md")} == set(re.findall(r"[\w-]+\.md", navigation))


def test_requirements_and_constraints_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert lines == sorted(lines, key=str.lower)
    # public versions only: no local builds, no paths
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())
    extras = [requirement for group in project["optional-dependencies"].values() for requirement in group]
    wanted = map(Requirement, [*project["dependencies"], *extras])
    assert [str(r) for r in wanted if not r.specifier.contains(pins.get(canonicalize_name(r.name), "0"))] == []


def test_embedded_model_has_one_version() -> None:
    wheels = {"==".join(entry.package) for entry in CATALOGUE if entry.package}
    assert len(wheels) == 1
    (wheel,) = wheels
    assert wheel in (ROOT / "constraints.txt").read_text().split()
    assert wheel in (ROOT / "Makefile").read_text().split()


def test_changelog_knows_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_licence_is_the_one_that_is_declared() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_protocol_page_explains_every_message_and_fault() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    names = [kind.kind for kind in Message.__args__] + [code.value for code in FaultCode]
    assert [name for name in names if f"| `{name}` |" not in page] == []
