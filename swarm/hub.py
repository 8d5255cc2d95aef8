"""Models on the Hugging Face hub, or on any server that speaks its protocol: what a repository holds, and single files.

`huggingface_hub` does the talking and keeps its shared cache; HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are its
affair. Here are the few calls that a swarm needs, with errors in sentences.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from swarm import atomic
from swarm.digest import file_sha256
from swarm.errors import ModelError
from swarm.weights import quiet_library

__all__ = ["Hub", "Repo", "fetch", "looks_like_hub_id", "open_repo", "shard_digests", "sizes"]

_log = logging.getLogger(__name__)

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")  # everything but weights and pictures
TIMEOUT = 10.0  # seconds for an answer about a file or a repository


@dataclass(frozen=True, slots=True)
class Hub:
    """How to reach the hub. None: as huggingface_hub's own environment says."""

    token: str | None = field(default=None, repr=False)
    offline: bool = False
    endpoint: str | None = None
    cache: Path | None = None  # the shared cache of downloaded files


@dataclass(frozen=True, slots=True)
class Repo:
    """One repository at one commit."""

    id: str
    commit: str
    hub: Hub


def looks_like_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def open_repo(repo_id: str, revision: str | None, hub: Hub) -> tuple[Repo, Path]:
    """The repository and a folder with its small files: config, tokenizer, index. Raises ModelError."""
    with _sentences(repo_id, revision, hub), quiet_library():
        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=hub.token,
            local_files_only=hub.offline,
            endpoint=hub.endpoint,
            cache_dir=hub.cache,
            etag_timeout=TIMEOUT,
            allow_patterns=list(SMALL_FILES),
        )
    return Repo(repo_id, Path(folder).name, hub), Path(folder)


def fetch(repo: Repo, file: str, progress: Callable[[int], None] | None = None) -> Path:
    """One file of the repository, downloaded unless it is in the cache. `progress` is told of bytes that have come,
    also in earlier, broken attempts. Raises ModelError."""
    with _sentences(repo.id, repo.commit, repo.hub, file):
        return Path(
            hf_hub_download(
                repo.id,
                file,
                revision=repo.commit,
                token=repo.hub.token,
                local_files_only=repo.hub.offline,
                endpoint=repo.hub.endpoint,
                cache_dir=repo.hub.cache,
                etag_timeout=TIMEOUT,
                tqdm_class=None if progress is None else _counter(progress),
            )
        )


def _counter(progress: Callable[[int], None]) -> type[tqdm]:
    """What the library takes for a bar, and which draws none."""

    class Counter(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            progress(int(options.get("initial") or 0))

        def update(self, n: float | None = 1) -> bool | None:
            progress(int(n or 0))
            return None

    return Counter


def sizes(repo: Repo) -> dict[str, int]:
    """The bytes of each file in the repository, as the hub tells them; nothing where it is not asked. Raises
    ModelError."""
    if repo.hub.offline:
        return {}
    with _sentences(repo.id, repo.commit, repo.hub):
        api = HfApi(endpoint=repo.hub.endpoint, token=repo.hub.token)
        info = api.model_info(repo.id, revision=repo.commit, files_metadata=True, timeout=TIMEOUT)
    return {entry.rfilename: entry.size for entry in info.siblings or () if entry.size is not None}


def shard_digests(repo: Repo, files: Sequence[str], cache: Path) -> dict[str, str]:
    """The sha256 of each of `files`, without a download where the hub stores them as large files. A commit never
    changes, so the answer is kept in `cache`, and serves offline."""
    note = cache / "hub" / repo.id.replace("/", "--") / f"{repo.commit}.json"
    known = _read_note(note)
    if not set(files) <= known.keys():
        known = {} if repo.hub.offline else _ask_digests(repo)
        known |= {file: file_sha256(fetch(repo, file), cache) for file in files if file not in known}
        known = {file: known[file] for file in files}
        _write_note(note, known)
    return {file: known[file] for file in files}


def _ask_digests(repo: Repo) -> dict[str, str]:
    with _sentences(repo.id, repo.commit, repo.hub):
        api = HfApi(endpoint=repo.hub.endpoint, token=repo.hub.token)
        info = api.model_info(repo.id, revision=repo.commit, files_metadata=True, timeout=TIMEOUT)
    return {entry.rfilename: entry.lfs.sha256 for entry in info.siblings or () if entry.lfs is not None}


def _read_note(note: Path) -> dict[str, str]:
    try:
        return {str(file): str(value) for file, value in json.loads(note.read_bytes()).items()}
    except (OSError, ValueError, AttributeError):  # never written, or unreadable: ask again
        return {}


def _write_note(note: Path, known: Mapping[str, str]) -> None:
    try:
        atomic.write_file(note, json.dumps(known).encode())
    except OSError as error:
        _log.warning("what the hub says of this model's files is not remembered: %s", error)


@contextmanager
def _sentences(repo_id: str, revision: str | None, hub: Hub, file: str | None = None) -> Iterator[None]:
    """Turns the library's errors into ModelErrors that say what to do."""
    what = f"'{repo_id}'" + (f" at revision '{revision}'" if revision else "")
    try:
        yield
    except GatedRepoError:
        raise ModelError(f"{what} is gated: accept its terms on the hub, then set HF_TOKEN to your token") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"the hub has no model {what}, or it is private: check the name, or set HF_TOKEN to your token"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"the hub has '{repo_id}', but no revision '{revision}' of it") from None
    except RemoteEntryNotFoundError:
        raise ModelError(
            f"the hub has {what}, but not its file {file or ''}: it holds no safetensors weights"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ModelError(
            f"{what} is not in the local cache{f' (file {file})' if file else ''}, and the hub "
            + (
                "was not asked, in offline mode: go online once"
                if hub.offline
                else "cannot be reached: check the network"
            )
        ) from None
    except HFValidationError as error:
        raise ModelError(f"'{repo_id}' is no hub id: {error}") from None
    except HfHubHTTPError as error:
        raise ModelError(f"the hub refused to give {what}: {_first_line(error)}") from None
    except (HTTPError, OSError) as error:
        raise ModelError(f"fetching {what} from the hub failed: {_first_line(error)}; check the network") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
