"""What a new user gets wrong, and the one sentence that says so. Serving peers' own refusals: tests/peers."""

import io
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import psutil
import pytest

from swarm.cli import run
from swarm.identity import Identity
from swarm.subprocesses import ServeProcess
from tests.users.bystander import Bystander

NOWHERE = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.ephemeral().peer_id}"


def refused(capsys: pytest.CaptureFixture[str], *command: str, code: int = 2) -> str:
    """The one line that a command ends with; it leaves no process and says nothing else."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    assert run(command) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("swarm: ")
    assert said.err.count("\n") == 1, said.err
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    return said.err


# --- what the command line itself shows ---


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "--initial-peers"),
        (("--initial-peers", "somewhere"), "'somewhere' is no peer's address"),
        (("--initial-peers", NOWHERE, "--codec", "zip"), "--codec is one of fp32, fp16, bf16, int8, not 'zip'"),
    ],
)
def test_options_of_run_are_checked_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(capsys, "run", "smollm2", "Hi", *options)


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_empty_prompt_is_refused(capsys: pytest.CaptureFixture[str], prompt: str) -> None:
    assert "the prompt is empty" in refused(capsys, "run", "smollm2", prompt, "--initial-peers", NOWHERE)


def test_prompt_that_is_no_text_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\x00")))
    assert "UTF-8" in refused(capsys, "run", "smollm2", "-", "--initial-peers", NOWHERE)


def test_demo_without_a_middle_and_bench_with_too_many_peers_are_refused(
    capsys: pytest.CaptureFixture[str], model: Path, cache: Path
) -> None:
    assert "--kill-after" in refused(capsys, "demo", "--kill-after", "96")
    assert run(("bench", "swarm", str(model), "--peers", "5", "--cache-dir", str(cache))) == 2
    assert "has only 4 blocks" in capsys.readouterr().err.splitlines()[-1]


# --- models ---


def test_wrong_model_name_is_refused_with_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean smollm2" in refused(capsys, "run", "smolm2", "Hi", "--initial-peers", NOWHERE)
    assert "did you mean smollm2" in refused(capsys, "demo", "--model", "smolm2")


def test_cache_that_cannot_be_written_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    folder = str(file / "cache")
    said = refused(capsys, "run", "smollm2", "Hi", "--initial-peers", NOWHERE, "--cache-dir", folder)
    assert f"cannot write the converted model to {folder}" in said
    assert "another cache folder" in said


def test_weights_that_are_cut_short_are_refused(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    shard = max(copy.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size // 2)
    said = refused(capsys, "run", str(copy), "Hi", "--initial-peers", NOWHERE, "--cache-dir", str(tmp_path))
    assert f"{shard} is damaged or cut short" in said


def test_shape_that_fits_no_machine_is_refused_before_it_is_loaded(tmp_path: Path, model: Path, cache: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    large = {"hidden_size": 1 << 16, "intermediate_size": 1 << 19, "num_hidden_layers": 99}
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / "config.json").write_text(json.dumps(config | large))
    with ServeProcess(
        [str(copy), "--new-swarm", "--num-blocks=99", f"--cache-dir={cache}", f"--identity-path={tmp_path / 'key'}"]
    ) as peer:
        assert peer.wait(60) == 2
        assert any("99 blocks do not fit" in line for line in peer.log)
        assert "Traceback" not in "\n".join(peer.log)


# --- swarms ---


@pytest.mark.parametrize("command", [("run", "MODEL", "one"), ("status",)])
def test_swarm_out_of_reach_is_named(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...], model: Path, cache: Path, nobody: Bystander
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    dead = f"/ip4/127.0.0.1/tcp/{port}/p2p/{Identity.ephemeral().peer_id}"
    stranger = nobody.address.rpartition("/")[0] + f"/{Identity.ephemeral().peer_id}"  # somebody else is there
    words = [str(model) if word == "MODEL" else word for word in command]
    more = ["--cache-dir", str(cache)] if command[0] == "run" else []
    for address in (dead, stranger):
        said = refused(capsys, *words, "--initial-peers", address, *more, code=1)
        assert f"none of the initial peers answered: {address}" in said


def test_swarm_without_peers_says_so(
    capsys: pytest.CaptureFixture[str], model: Path, cache: Path, nobody: Bystander
) -> None:
    assert run(["status", "--initial-peers", nobody.address]) == 0
    assert capsys.readouterr().out.strip() == "No peer serves anything in this swarm."
    assert run(["status", "--json", "--initial-peers", nobody.address]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == []
    options = ("--initial-peers", nobody.address, "--patience", "0", "--cache-dir", str(cache))
    said = refused(capsys, "run", str(model), "one two", *options, code=1)
    assert "no peer of this swarm serves tiny" in said
    assert "swarm-serve" in said


def test_prompt_longer_than_the_context_is_refused(
    capsys: pytest.CaptureFixture[str], model: Path, cache: Path, nobody: Bystander
) -> None:
    options = ("--initial-peers", nobody.address, "--cache-dir", str(cache))
    said = refused(capsys, "run", str(model), "one " * 1000, "--max-new-tokens", "100", *options)
    assert "more than this model's context of 1024" in said


# --- what is right ---


def test_answers_are_plain_text_or_one_object(
    capsys: pytest.CaptureFixture[str], model: Path, cache: Path, peer: ServeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--initial-peers", peer.ready.addresses[0], "--max-new-tokens", "4", "--cache-dir", str(cache)]
    assert run(["run", str(model), "one two", *options]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one two\n")))
    assert run(["run", str(model), "-", "--json", *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"].strip() == text.strip()
    assert answer["chain"] == [{"peer": peer.ready.peer_id, "blocks": [0, 4]}]


def test_status_fits_into_eighty_columns(
    capsys: pytest.CaptureFixture[str], peer: ServeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["status", "--initial-peers", peer.ready.addresses[0]]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "tiny · 4 blocks · 1 online · every block stands once" in lines
    assert any(line.startswith("████  0:4  online    ada") for line in lines)
    assert max(map(len, lines)) <= 80


def test_drafts_leave_the_answer_as_it_is(
    capsys: pytest.CaptureFixture[str], model: Path, cache: Path, peer: ServeProcess, tmp_path: Path
) -> None:
    options = [
        "--json",
        "--initial-peers",
        peer.ready.addresses[0],
        "--max-new-tokens",
        "24",
        "--cache-dir",
        str(cache),
    ]
    answers = []
    for draft in ("none", "ngram", str(model)):
        assert run(["run", str(model), "one two one two", "--draft", draft, *options]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] == answers[2]
    other = shutil.copytree(model, tmp_path / "other")
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["vocab"]["three"] = 5
    (other / "tokenizer.json").write_text(json.dumps(words))
    sentence = refused(capsys, "run", str(model), "one two", "--draft", str(other), *options)
    assert "it has another tokenizer than the model" in sentence
