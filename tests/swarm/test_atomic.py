from pathlib import Path

import pytest

from swarm.atomic import new_folder, write_file


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "note"
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_appears_only_when_its_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def fail_half_way() -> None:
        with new_folder(target) as folder:
            (folder / "half").write_text("x")
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    with new_folder(target) as folder:
        (folder / "whole").write_text("x")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_behind_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".model.part-abc"
    leftover.mkdir()
    (leftover / "half").write_text("x")
    with new_folder(tmp_path / "model"):
        pass
    assert not leftover.exists()
