"""A GGUF file, converted once into a Hugging Face folder in the cache.

Weights are stored as fp32: 4- and 8-bit values times a 16-bit scale plus a 16-bit offset do not fit fp16 or bf16
without loss, and a file in the dtype of the computation is mapped instead of copied. Everyone who converts the same
file gets the same bytes, so the digests agree. The library's own reader does the work, and holds all of the fp32
weights while it does.
"""

import shutil
from pathlib import Path
from typing import Any

import filelock
import psutil
import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from swarm import atomic
from swarm.architecture import architecture, skeleton
from swarm.digest import file_sha256
from swarm.errors import ModelError
from swarm.weights import quiet_library

__all__ = ["convert"]

FORMAT = 1  # of what is written; another number, another folder
MAX_SHARD = "2GB"
LOCK_TIMEOUT = 1800.0  # seconds to wait for another process that converts the same file
MARGIN = 64 << 20  # bytes for the tokenizer and the rest


def convert(path: Path, *, cache: Path) -> Path:
    """The folder with `path` as a Hugging Face checkpoint; made if it is not there. Raises ModelError."""
    _check_magic(path)
    _check_cache(cache)
    target = cache / "gguf" / f"{path.stem}-{file_sha256(path, cache)[:16]}-v{FORMAT}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{target}.lock", timeout=LOCK_TIMEOUT):
            if not target.is_dir():
                with atomic.new_folder(target) as folder, quiet_library():
                    _write(path, folder)
    except filelock.Timeout:
        raise ModelError(
            f"another process has been converting {path.name} for {LOCK_TIMEOUT / 60:.0f} minutes; stop it first"
        ) from None
    except (OSError, SafetensorError) as error:
        raise _unwritable(cache, error) from None
    return target


def _check_cache(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(cache, error) from None


def _unwritable(cache: Path, error: Exception) -> ModelError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ModelError(
        f"cannot write the converted model to {cache} ({reason}): make room there, or choose another cache folder"
    )


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    if magic != b"GGUF":
        raise ModelError(f"{path} is no GGUF file")


def _write(path: Path, folder: Path) -> None:
    config = _read(path, lambda: AutoConfig.from_pretrained(path.parent, gguf_file=path.name))
    architecture(config)  # refuse before the long part
    model = skeleton(config)
    _check_room(sum(p.numel() for p in model.parameters()) * torch.float32.itemsize, folder)
    tensors = _read(path, lambda: _dequantized(path, model))
    tokenizer = _read(path, lambda: AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name))
    save_torch_state_dict(tensors, folder, max_shard_size=MAX_SHARD, metadata={"format": "pt"})
    _write_config(config, type(model).__name__, folder)
    tokenizer.save_pretrained(folder)


def _dequantized(path: Path, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor]
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]  # type: ignore[no-untyped-call]
    return tensors


def _write_config(config: PreTrainedConfig, class_name: str, folder: Path) -> None:
    config.architectures = [class_name]
    config.dtype = torch.float32
    config.__dict__.pop("_model_name_or_path", None)
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)


def _read(path: Path, read: Any) -> Any:
    """What `read()` gives. The reader raises whatever the bytes it trusted led it to."""
    try:
        return read()
    except OSError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be converted: {type(error).__name__}: {error}") from error


def _check_room(size: int, folder: Path) -> None:
    """`size`: bytes of the fp32 weights, which must fit in memory and on disk at once."""
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(folder).free
    for what, free in (("memory", memory), (f"disk space in {folder.parent}", disk)):
        if free < size + MARGIN:
            raise ModelError(
                f"converting this model needs {size + MARGIN >> 20} MiB of {what}, and {free >> 20} MiB are free"
            )
