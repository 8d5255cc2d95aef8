"""Blocks that pass: as few as may be, and none of them in memory when another runs."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peers.window import Window, passing_blocks
from swarm.errors import UsageError
from swarm.mapping import LETS_GO, MappedFile
from tests.memory import resident

SIZE = 1 << 20
linux = pytest.mark.skipif(not LETS_GO, reason="only Linux lets go of mapped pages at once")


def touched(file: MappedFile) -> int:
    """Reads it all; returns how much of it is in memory then."""
    assert int(file.content.to(torch.int32).sum()) == len(file)
    return resident(file.path)


@pytest.fixture
def files(tmp_path: Path) -> list[MappedFile]:
    paths = [tmp_path / f"{index}.packed" for index in range(4)]
    for path in paths:
        path.write_bytes(b"\1" * SIZE)
    return [MappedFile(path) for path in paths]


@linux
def test_what_passes_is_let_go_of_and_what_stays_is_not(files: list[MappedFile]) -> None:
    window = Window(files, 3 * SIZE)
    assert (window.count, window.size) == (2, 2 * SIZE)
    for _ in range(3):
        for index, file in enumerate(files):
            with window.open(index):
                assert touched(file) == SIZE
        assert sum(resident(file.path) for file in files) == 2 * SIZE


@linux
def test_a_block_that_fails_is_let_go_of_too(files: list[MappedFile]) -> None:
    window = Window(files, SIZE)

    def fail() -> None:
        with window.open(1):
            touched(files[1])
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert resident(files[1].path) == 0


@linux
def test_a_file_in_place_of_another_takes_its_turn(files: list[MappedFile], tmp_path: Path) -> None:
    path = tmp_path / "new.packed"
    path.write_bytes(b"\1" * 2 * SIZE)
    new, window = MappedFile(path), Window(files[:2], 2 * SIZE)
    assert window.count == 0
    touched(files[1])
    window.replace(1, new)
    assert resident(files[1].path) == 0
    assert window.count == 2
    with window.open(1):
        assert touched(new) == 2 * SIZE
    assert resident(path) == 0


def test_room_for_no_block_is_refused_with_what_would_help() -> None:
    with pytest.raises(UsageError, match=r"one block takes 7 bytes.*6 are left.*--max-memory"):
        passing_blocks([5, 7, 5], 6)


@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=40), room=st.integers(0, 4000))
def test_what_is_held_at_once_never_exceeds_the_room(sizes: list[int], room: int) -> None:
    if max(sizes) > room:
        with pytest.raises(UsageError):
            passing_blocks(sizes, room)
        return
    passing = passing_blocks(sizes, room)
    held = sum(sizes) - sum(sizes[index] for index in passing) + max((sizes[index] for index in passing), default=0)
    assert held <= room
    assert passing == sorted(set(passing))
    assert bool(passing) == (sum(sizes) > room)


@given(count=st.integers(1, 60), stays=st.integers(0, 60))
def test_of_equal_blocks_no_more_pass_than_must_and_they_lie_evenly(count: int, stays: int) -> None:
    passing = passing_blocks([10] * count, 10 * (stays + 1))
    assert len(passing) == (count - stays if stays + 1 < count else 0)
    gaps = [after - before for before, after in pairwise(passing)]
    assert not gaps or max(gaps) - min(gaps) <= 1
