"""Which models are on this machine: converted ones in our cache, fetched ones in the hub's. Reads headers alone.

Imports neither torch nor the hub's library, so that a list is there at once.
"""

import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarm.catalogue import CATALOGUE, hub_cache

__all__ = ["Stored", "stored_models"]

MOST_HEADER = 100 << 20  # bytes of a safetensors file's header, as its format limits it
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PARTIAL = ".incomplete"  # how the hub's library names what it has not wholly fetched


@dataclass(frozen=True, slots=True)
class Stored:
    """`kind`: "embedded" or "gguf" for converted ones, "hub". `files` of weights are here, of `wanted`; `precisions` of
    the weights, the most frequent first. `trouble`: a sentence, where something is broken."""

    name: str
    kind: str
    folder: Path
    bytes: int
    blocks: int | None
    files: int
    wanted: int
    precisions: tuple[str, ...]
    trouble: str | None = None

    @property
    def whole(self) -> bool:
        return self.files >= self.wanted > 0 and self.trouble is None


def stored_models(cache: Path, environ: Mapping[str, str]) -> tuple[Stored, ...]:
    return (*_converted(cache), *_fetched(hub_cache(environ)))


def _converted(cache: Path) -> Iterator[Stored]:
    embedded = {Path(entry.source).stem: entry.alias for entry in CATALOGUE if entry.package}
    for folder in sorted((cache / "gguf").glob("[!.]*")):
        if folder.is_dir():
            stem = folder.name.rsplit("-", 2)[0]
            kind = "embedded" if stem in embedded else "gguf"
            yield _stored(embedded.get(stem, stem), kind, folder)


def _fetched(hub: Path) -> Iterator[Stored]:
    aliases = {entry.source: entry.alias for entry in CATALOGUE if not entry.package}
    for repo in sorted(hub.glob("models--*--*")):
        name = "/".join(repo.name.split("--")[1:])
        snapshots = sorted(repo.glob("snapshots/*"), key=lambda path: path.stat().st_mtime)
        if snapshots:
            yield _stored(aliases.get(name, name), "hub", snapshots[-1], sorted(repo.glob(f"blobs/*{PARTIAL}")))


def _stored(name: str, kind: str, folder: Path, partial: list[Path] = []) -> Stored:  # noqa: B006 (never changed)
    trouble = None
    try:
        wanted = _weight_files(folder)
        config = json.loads((folder / "config.json").read_bytes())
        blocks = config.get("num_hidden_layers") if isinstance(config, dict) else None
    except (OSError, ValueError) as error:
        wanted, blocks, trouble = {SINGLE}, None, f"its config or index can't be read ({error})"
    here = [folder / file for file in sorted(wanted) if (folder / file).is_file()]
    precisions: Counter[str] = Counter()
    for path in here:
        try:
            precisions += _header(path)
        except (OSError, ValueError, struct.error) as error:
            trouble = trouble or f"{path.name} is damaged or cut short ({error})"
    files = [path for path in folder.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in [*files, *partial])
    ordered = tuple(dtype for dtype, _ in precisions.most_common())
    return Stored(
        name, kind, folder, total, blocks if isinstance(blocks, int) else None, len(here), len(wanted), ordered, trouble
    )


def _weight_files(folder: Path) -> set[str]:
    """Names; those that are not here, too. Raises OSError, ValueError."""
    if not (folder / INDEX).is_file():
        return {SINGLE}
    index = json.loads((folder / INDEX).read_bytes())
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) and "/" not in file for file in files.values()):
        raise ValueError("the index names no files")
    return set(files.values())


def _header(path: Path) -> Counter[str]:
    """How many tensors there are of each type. Raises OSError, ValueError for a file that is not as long as it says."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MOST_HEADER:
            raise ValueError("no header of safetensors")
        header: Any = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("no header of safetensors")
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    if not all(isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list) for entry in tensors):
        raise ValueError("no header of safetensors")
    end = 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
    if path.stat().st_size != end:
        raise ValueError(f"{path.stat().st_size} bytes instead of {end}")
    return Counter(str(entry.get("dtype")).lower() for entry in tensors)
