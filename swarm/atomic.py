"""Files and folders that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["new_folder", "write_file", "write_parts"]


def write_file(path: Path, data: bytes) -> None:
    """Replaces `path` in one step. Raises OSError."""
    write_parts(path, (data,))


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """`write_file` of all these, one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends well and is removed when it does not. Removes what
    earlier processes that were killed left behind, so hold a lock on `path`. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.part-"
    for leftover in path.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
