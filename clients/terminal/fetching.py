"""Files of a model, fetched before they are needed."""

from collections.abc import Callable
from dataclasses import dataclass

from swarm import hub
from swarm.checkpoint import Checkpoint, files_of
from swarm.errors import UsageError
from swarm.ids import Span

__all__ = ["Part", "fetch", "files_to_fetch"]


@dataclass(frozen=True, slots=True)
class Part:
    """Of a model: `blocks`, what a client keeps, or, with neither, all of it."""

    blocks: Span | None = None
    client: bool = False


def files_to_fetch(checkpoint: Checkpoint, part: Part) -> dict[str, int | None]:
    """The files of weights that hold the part, with their bytes where the hub tells them; none for a model that is a
    local folder or was converted here. Raises UsageError, ModelError."""
    blocks = part.blocks
    if blocks is not None and blocks.end > checkpoint.num_blocks:
        raise UsageError(
            f"--blocks {blocks}: {checkpoint.name} has blocks 0:{checkpoint.num_blocks}, so these are not among them"
        )
    repo = checkpoint.shards.repo
    if repo is None:
        return {}
    files = set(checkpoint.shards.files) if blocks is None and not part.client else set[str]()
    if blocks is not None:
        files |= set(files_of(checkpoint, blocks))
    if part.client:
        files |= set(files_of(checkpoint, None))
    sizes = hub.sizes(repo)
    return {file: sizes.get(file) for file in sorted(files)}


def fetch(checkpoint: Checkpoint, file: str, progress: Callable[[int], None]) -> None:
    """`progress` is told of bytes as they come. Raises ModelError."""
    assert checkpoint.shards.repo is not None
    hub.fetch(checkpoint.shards.repo, file, progress)
