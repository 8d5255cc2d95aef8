"""Set-ups that are broken in one way each, and the finding that names it."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from clients.doctor.finding import Verdict
from clients.doctor.versions import packages, python
from swarm.cli import run
from swarm.identity import Identity
from swarm.running import Running, announce_running
from tests.models import tiny_model
from tests.users.bystander import Bystander


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody with folders of their own, and nothing in them."""
    for name in [name for name in os.environ if name.startswith("SWARM_")]:
        monkeypatch.delenv(name)
    for name in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture(scope="module")
def member() -> Iterator[Bystander]:
    with Bystander() as bystander:
        yield bystander


@dataclass(frozen=True)
class Report:
    code: int
    findings: list[dict[str, str]]

    def of(self, verdict: Verdict) -> dict[str, str]:
        """Check and sentence of the findings with that verdict."""
        return {each["check"]: each["says"] for each in self.findings if each["verdict"] == verdict}

    @property
    def failed(self) -> dict[str, str]:
        assert self.code == int(bool(self.of(Verdict.FAIL)))
        assert all(each["todo"] for each in self.findings if each["verdict"] in (Verdict.FAIL, Verdict.WARN))
        return self.of(Verdict.FAIL)


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> "Examine":
    return Examine(capsys)


@dataclass
class Examine:
    capsys: pytest.CaptureFixture[str]

    def __call__(self, only: str, *options: str) -> Report:
        code = run(["doctor", "--json", "--only", only, *options])
        return Report(code, json.loads(self.capsys.readouterr().out)["findings"])


# --- nothing wrong ---


def test_healthy_machine_is_called_so(
    examine: Examine, member: Bystander, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    local = ("--host", "127.0.0.1", "--port", "0", "--initial-peers", member.address)
    report = examine("files,machine,versions,network", *local)
    assert report.failed == {}
    found = report.of(Verdict.OK)
    assert {"Python", "packages", "open files", "identity", "cache", "disk", "port", "clock"} <= found.keys()
    assert found["initial peer"] == f"{member.address} answers"
    assert "nobody serves anything" in report.of(Verdict.WARN)["directory"]
    assert not (home / "data").exists()  # no identity is made
    assert run(["doctor", "--only", "files"]) == 0
    assert "0 failed" in capsys.readouterr().out
    assert run(["doctor", "--only", "feet"]) == 2


# --- the network ---


def test_busy_port(examine: Examine, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        options = ("--host", "127.0.0.1", "--port", port)
        assert f"port {port} of 127.0.0.1 can't be used" in examine("network", *options).failed["port"]
        mine = Running.here("peer", models=("m",), address=f"/ip4/127.0.0.1/tcp/{port}/p2p/x")
        with announce_running(mine, home / "state" / "swarm"):
            assert f"taken by your own peer, process {os.getpid()}" in examine("network", *options).failed["port"]


def test_dead_bootstrap_beside_one_that_lives(examine: Examine, member: Bystander) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    dead = f"/ip4/127.0.0.1/tcp/{port}/p2p/{Identity.ephemeral().peer_id}"
    report = examine("network", "--host", "127.0.0.1", "--initial-peers", f"{dead},{member.address}")
    assert report.failed == {"initial peer": f"{dead}: nothing listens at 127.0.0.1 port {port}"}
    assert f"{member.address} answers" in report.of(Verdict.OK).values()
    assert report.of(Verdict.OK)["clock"].startswith("within")


def test_wrong_address_of_a_bootstrap(examine: Examine, member: Bystander) -> None:
    stranger = member.address.rpartition("/")[0] + f"/{Identity.ephemeral().peer_id}"
    for address, sentence in ((stranger, f"is at {stranger}"), ("/ip4/300.0.0.1/tcp/1/p2p/x", "is no multiaddress")):
        report = examine("network", "--host", "127.0.0.1", "--initial-peers", address)
        assert sentence in report.failed["initial peer"]
        assert "no peer answered" in report.of(Verdict.SKIPPED)["clock"]


def test_wrong_address_of_this_machine(examine: Examine, member: Bystander) -> None:
    """One that leads to somebody else, and one that leads here."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    local = ("--host", "127.0.0.1", "--port", port)
    elsewhere = member.address.partition("/p2p/")[0]
    report = examine("network", *local, "--announce", elsewhere)
    assert report.failed == {"announced address": f"somebody else is at {elsewhere}, not this machine's port"}
    report = examine("network", *local, "--announce", f"127.0.0.1:{port}")
    assert report.failed == {}
    assert report.of(Verdict.OK)["announced address"] == f"/ip4/127.0.0.1/tcp/{port} leads to this machine"
    assert "this machine alone" in report.of(Verdict.WARN)["announced address"]


@pytest.mark.parametrize(("ahead", "way"), [(60.0, "behind"), (-60.0, "ahead of")])
def test_clock_that_is_off(examine: Examine, ahead: float, way: str) -> None:
    with Bystander(ahead=ahead) as other:
        report = examine("network", "--host", "127.0.0.1", "--initial-peers", other.address)
    assert f"clock is 60.0 s {way} that of the peer" in report.failed["clock"]


# --- files ---


def test_cache_that_cannot_be_written(examine: Examine, home: Path) -> None:
    (home / "file").touch()
    report = examine("files", "--cache-dir", str(home / "file" / "cache"))
    assert report.failed.keys() == {"cache"}
    assert f"can be written to the cache {home}/file/cache" in report.failed["cache"]


def test_disk_that_is_nearly_full(examine: Examine) -> None:
    report = examine("files", "--disk-gb", "1e9")
    assert report.failed.keys() == {"disk"}
    assert "are free on the disk" in report.failed["disk"]


def test_config_file_that_is_broken(examine: Examine, home: Path) -> None:
    folder = home / "config" / "swarm"
    folder.mkdir(parents=True)
    for text, sentence in (
        ("initial-peers = [", "is no valid TOML"),
        ("[serve]\nkv-cash-tokens = 2\n", "no option --kv-cash-tokens"),
        ("[bench.wan]\nfoo = 2\n", "no option --foo"),
        ("[fly]\n", "has a table [fly]"),
    ):
        (folder / "config.toml").write_text(text)
        assert sentence in examine("files").failed["config file"]


def test_identity_that_others_can_read(examine: Examine, home: Path) -> None:
    key = home / "data" / "swarm" / "identity"
    Identity.load_or_create(key)
    assert examine("files").failed == {}
    key.chmod(0o644)
    assert examine("files").failed == {"identity": f"others can read the identity file {key}; run: chmod 600 {key}"}


def test_model_in_the_cache_that_is_cut_short(examine: Examine, home: Path) -> None:
    folder = tiny_model("llama", home / "hub" / "models--org--tiny" / "snapshots" / "c0ffee")
    assert "models" not in examine("models").failed
    shard = max(folder.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size // 2)
    assert f"org/tiny: {shard.name} is damaged or cut short" in examine("models").failed["models"]


def test_embedded_model_that_is_not_what_others_have(examine: Examine, home: Path) -> None:
    cache = home / "cache" / "swarm"
    (embedded,) = [each for each in examine("models").findings if each["check"] == "embedded model"]
    assert embedded["verdict"] == Verdict.OK
    folder = cache / "gguf" / "SmolLM2-135M-Instruct.Q4_1-b179c9523d0e6a0f-v1"
    shutil.copytree(tiny_model("llama", home / "tiny"), folder)
    assert f"smollm2 in {folder} is not what others have" in examine("models").failed["embedded model"]


# --- the machine ---


def test_open_files_that_are_few() -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

    command = [sys.executable, "-m", "swarm", "doctor", "--json", "--only", "machine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=few)
    report = Report(done.returncode, json.loads(done.stdout)["findings"])
    assert report.failed == {"open files": "this shell lets a program open only 128 files at once"}


def test_package_that_is_too_old_or_not_there() -> None:
    found = packages(["protobuf<3", "no-such-package-here>=1", "numpy>=1", "torch>=99; extra == 'x'"])
    assert [finding.verdict for finding in found] == [Verdict.FAIL, Verdict.FAIL]
    assert ", and <3 is needed" in found[0].says
    assert found[0].todo == "run: pip install 'protobuf<3'"
    assert "no-such-package-here is not installed" in found[1].says
    assert [finding.verdict for finding in packages()] == [Verdict.OK]
    assert python().verdict is Verdict.OK


def test_port_that_was_not_asked_for_may_be_busy() -> None:
    from clients.doctor.network import Way, port

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        way = Way("127.0.0.1", None, server.getsockname()[1], (), ())
        assert port(way, ()).verdict is Verdict.WARN
