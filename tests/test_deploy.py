"""What `deploy/` says of the program and the repository is true. Nothing here builds an image or starts a service."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import swarm.cli
from swarm.cli import COMMANDS, Entry, load_command
from swarm.entrance import USUAL_PORT
from tests.test_house import problem

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
UNIT = (DEPLOY / "swarm-serve.service").read_text()
ENVIRONMENT = (DEPLOY / "serve.env").read_text()


def serve_variables() -> set[str]:
    """The variables of `swarm serve`'s options."""
    entry = COMMANDS["serve"]
    assert isinstance(entry, Entry)
    return {str(param.envvar) for param in load_command("serve", entry).params if getattr(param, "envvar", None)}


def instructions(name: str) -> list[str]:
    """What stands behind each instruction `name` of the Dockerfile, on one line."""
    lines = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)$", lines, re.MULTILINE)


def test_image_copies_what_exists_and_what_its_context_lets_in() -> None:
    let_in = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {name for line in instructions("COPY") if "--from" not in line for name in line.split()[:-1]}
    assert copied == let_in
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_image_holds_every_folder_that_is_installed_and_every_file_that_describes_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {name for line in instructions("COPY") for name in line.split()[:-1]}
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied
    assert {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"} <= copied


def test_image_starts_the_command_and_runs_as_nobody_in_particular() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (entry,), (user,) = instructions("ENTRYPOINT"), instructions("USER")
    assert json.loads(entry)[0] in scripts
    assert all(int(number) >= 1000 for number in user.split(":"))
    assert instructions("EXPOSE") == [str(USUAL_PORT)]
    assert f"SWARM_PORT={USUAL_PORT}" in instructions("ENV")[-1]
    assert "SWARM_PORT" in serve_variables()


def test_health_check_of_the_image_sees_whether_the_port_answers() -> None:
    (check,) = instructions("HEALTHCHECK")
    python, *rest = json.loads(check.partition("CMD ")[2])
    assert python == "python"

    def status(port: int) -> int:
        done = subprocess.run([sys.executable, *rest], env={"SWARM_PORT": str(port)}, capture_output=True, timeout=60)
        return done.returncode

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert status(port) == 0
    assert status(port) == 1


def test_composed_peer_is_given_options_that_exist() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    command = re.search(r"command:\n((?: +- .*\n)+)", text)
    assert command is not None
    words = re.findall(r"- (.*)", command.group(1))
    assert problem(shlex.join(["swarm", *words])) is None
    assert f'"{USUAL_PORT}:{USUAL_PORT}"' in text


def test_service_starts_a_command_that_exists_and_leaves_wrong_options_alone() -> None:
    (start,) = re.findall(r"^ExecStart=%h/\.local/bin/(.*)$", UNIT, re.MULTILINE)
    assert problem(start) is None
    assert "2 wrong usage" in str(swarm.cli.__doc__)
    assert "\nRestartPreventExitStatus=2\n" in UNIT
    assert "\nKillMode=mixed\n" in UNIT  # or the executor would be told to stop along with its peer


def test_variables_of_the_service_are_those_of_options() -> None:
    named = set(re.findall(r"^#?(SWARM_\w+)=", ENVIRONMENT, re.MULTILINE))
    assert len(named) > 5
    assert named - serve_variables() == {"SWARM_MODEL"}
    assert "${SWARM_MODEL}" in UNIT


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_service_is_understood_by_systemd(tmp_path: Path) -> None:
    unit = tmp_path / "swarm-serve.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", UNIT, flags=re.MULTILINE))
    command = ["systemd-analyze", "--user", "verify", "--man=no", str(unit)]
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    newer = ("RestartSteps", "RestartMaxDelaySec")  # than some systemd in use, which ignores them
    complaints = [line for line in done.stderr.splitlines() if str(unit) in line or "swarm-serve" in line]
    assert [line for line in complaints if not any(key in line for key in newer)] == []


def test_python_in_the_image_is_one_that_we_support() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE, re.MULTILINE)
    least = project["requires-python"].removeprefix(">=")
    assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split(".")))
