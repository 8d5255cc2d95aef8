"""The safetensors files of one checkpoint, in a local folder or fetched one by one from the hub."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from swarm import hub
from swarm.digest import file_sha256
from swarm.errors import ModelError
from swarm.weights import INDEX_FILE, SINGLE_FILE, check_shard, read_index

__all__ = ["Shards"]


@dataclass(frozen=True)
class Shards:
    """`index`: tensor name → file; empty where there is one file and no index."""

    folder: Path
    repo: hub.Repo | None = None
    index: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path, repo: hub.Repo | None = None) -> "Shards":
        """Raises ModelError if the index is malformed or, for a local folder, a file is missing or cut short."""
        path = folder / INDEX_FILE
        index = read_index(path) if path.exists() else {}
        for file in set(index.values()):
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                raise ModelError(f"{path} names a file outside of its folder ({file}): do not trust this model")
        shards = cls(folder, repo, index)
        if repo is None:
            shards._check_local()
        return shards

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.index.values()))) or (SINGLE_FILE,)

    def path(self, file: str) -> Path:
        """Where `file` lies; downloads it if need be."""
        return self.folder / file if self.repo is None else hub.fetch(self.repo, file)

    def where(self) -> Mapping[str, str]:
        """Tensor name → file, of all tensors."""
        return self.index or dict.fromkeys(check_shard(self.path(SINGLE_FILE)), SINGLE_FILE)

    def digests(self, cache: Path) -> tuple[str, ...]:
        """The sha256 of each file."""
        if self.repo is not None:
            return tuple(hub.shard_digests(self.repo, self.files, cache).values())
        return tuple(file_sha256(self.folder / file, cache) for file in self.files)

    def _check_local(self) -> None:
        if not self.index and not (self.folder / SINGLE_FILE).exists():
            raise ModelError(f"{self.folder} holds no safetensors weights ({SINGLE_FILE} or {INDEX_FILE})")
        for file in self.files:
            check_shard(self.folder / file)
