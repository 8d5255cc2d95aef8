"""Conversion of a tiny GGUF file, with real processes where it matters."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from swarm.checkpoint import resolve
from swarm.errors import ModelError
from tests.gguf_file import LAYERS, tiny_gguf

CONVERT = """
import sys
from pathlib import Path
from swarm.gguf_import import convert
print("ready", flush=True)
sys.stdin.readline()
print(convert(Path(sys.argv[1]), cache=Path(sys.argv[2])))
"""


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file of this process can grow beyond `room` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def start_conversion(path: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONVERT, str(path), str(cache)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def environment() -> dict[str, str]:
    """This process's, with one thread for each child, so that they do run side by side."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_a_converted_file_is_a_complete_hugging_face_folder(tmp_path: Path) -> None:
    checkpoint = resolve(str(tiny_gguf(tmp_path / "tiny.gguf")), cache=tmp_path / "cache")
    assert (checkpoint.name, checkpoint.num_blocks, checkpoint.max_positions) == ("tiny", LAYERS, 256)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    assert model.config.tie_word_embeddings
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    assert tokenizer.decode(tokenizer("cab")["input_ids"]) == "cab"
    assert tokenizer.chat_template
    assert GenerationConfig.from_pretrained(checkpoint.folder).eos_token_id == tokenizer.eos_token_id == 2


def test_equal_files_give_equal_digests_wherever_they_are_converted(tmp_path: Path) -> None:
    one = resolve(str(tiny_gguf(tmp_path / "one.gguf")), cache=tmp_path / "a")
    again = resolve(str(tiny_gguf(tmp_path / "two.gguf")), cache=tmp_path / "b")
    other = resolve(str(tiny_gguf(tmp_path / "three.gguf", seed=1)), cache=tmp_path / "b")
    assert one.digest == again.digest != other.digest
    assert resolve(str(one.folder), cache=tmp_path / "b").digest == one.digest


def test_two_processes_that_convert_at_once_end_with_one_folder(tmp_path: Path) -> None:
    path, cache = tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "cache"
    processes = [start_conversion(path, cache) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in processes]
    assert {out.strip() for out, _ in answers} == {str(next(p for p in (cache / "gguf").iterdir() if p.is_dir()))}, (
        answers
    )
    assert len([p for p in (cache / "gguf").iterdir() if p.is_dir()]) == 1


def test_a_full_disk_is_said_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    path, cache = tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "cache"
    with full_disk(50_000), pytest.raises(ModelError, match=r"cannot write the converted model .* make room"):
        resolve(str(path), cache=cache)
    assert not [p for p in (cache / "gguf").iterdir() if p.is_dir()]
    assert resolve(str(path), cache=cache).num_blocks == LAYERS


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    path, blocked = tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    with pytest.raises(ModelError, match="choose another cache folder"):
        resolve(str(path), cache=blocked)


@pytest.mark.parametrize("length", [0, 3, 40, 5_000, 60_000])
def test_a_file_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"no GGUF file|cannot be converted"):
        resolve(str(path), cache=tmp_path / "cache")
    assert not [p for p in tmp_path.glob("cache/gguf/*") if p.is_dir()]


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(ModelError, match="no GGUF file"):
        resolve(str(path), cache=tmp_path / "cache")
