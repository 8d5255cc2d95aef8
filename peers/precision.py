"""In what precision a peer computes: as it was told, or as its machine does fastest within a stated loss.

*Loss*, measured over 1 024 tokens of prose with all 30 blocks of SmolLM2, whose weights once had four bits (perplexity
in fp32 26.42): bf16 26.41, int8 26.58, int4 26.42, and 0.2 % more where our own kernel rounds activations to 8 bits;
packing moves its weights by 0.1, 0.9 and 0.25 % (norm of the difference). Weights that never had four bits are moved by
6 % in int4, and are not packed so unless somebody asks.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from peers.machine import Device
from peers.profiling import device_name
from peers.quantized import check_packable
from swarm import rates
from swarm.atomic import write_file
from swarm.checkpoint import Checkpoint, load_span
from swarm.errors import UsageError
from swarm.ids import Span
from swarm.onednn import pack_linears
from swarm.packed.bnb import LlmInt8Linear
from swarm.packing import KERNELS, pack, relative_error, restore

__all__ = ["Precision", "choose", "quickest"]

_log = logging.getLogger(__name__)

LOSS = 0.015  # what packing may change of weights, as a fraction of their norm, where nobody asked for it
SAMPLE_OUTPUTS = 256  # of each weight that is looked at
CHOICES = ("none", "bf16", "int8", "int4")  # least loss first
GAIN = 1.1  # a precision with more loss has to be so much faster
ROWS = (1, 16)  # one stream, and many
BEYOND_CACHES = 64 << 20  # bytes of weights, so that they are read from memory
MOST_COPIES = 128  # small weights are read from caches in use, too
PASSES = 3


@dataclass(frozen=True, slots=True)
class Precision:
    """`dtype`: of hidden states, keys and values, and of weights where `quantization` is "none"."""

    dtype: str
    quantization: str
    reason: str = ""  # a clause, where nobody asked for it
    kernel: str = ""  # its name, where it rounds otherwise than others of this quantization

    @property
    def name(self) -> str:
        """What is announced."""
        return self.kernel or (self.dtype if self.quantization == "none" else self.quantization)


def choose(
    dtype: str, quantization: str, device: Device, checkpoint: Checkpoint, *, threads: int, cache: Path
) -> Precision:
    """From what was asked for, "auto" included. Raises ModelError and UsageError."""
    if device.name != "cpu":
        return _elsewhere(dtype, quantization, device, checkpoint)
    if quantization == "nf4":
        raise UsageError("--quantization nf4 works on GPUs with CUDA; use --quantization int4 on the cpu")
    own = "fp32" if dtype == "auto" else dtype
    if quantization != "auto":
        if quantization != "none":
            check_packable(checkpoint, quantization)
        return Precision(own, quantization)
    if dtype != "auto" or checkpoint.architecture.odd_matrix:  # who names a dtype means the weights
        return Precision(own, "none")
    allowed = _allowed(checkpoint)
    seconds = _remembered(checkpoint, threads, cache)
    chosen = quickest({name: seconds[name] for name in allowed})
    names = ", ".join(own if name == "none" else name for name in allowed)
    return Precision(own, chosen, f"the quickest here of {names}, which change weights by {100 * LOSS:g} % at most")


def quickest(seconds: Mapping[str, float]) -> str:
    """The fastest of CHOICES that are in `seconds`, more loss only for enough gain."""
    best = min(seconds.values())
    return next(name for name in CHOICES if name in seconds and seconds[name] <= GAIN * best)


def _elsewhere(dtype: str, quantization: str, device: Device, checkpoint: Checkpoint) -> Precision:
    """On a device that is no processor: in half precision, where it is at home; weights in fewer bits if asked for."""
    if quantization == "bf16":
        return Precision("bf16", "none")
    own = ("bf16" if device.bf16 else "fp16") if dtype == "auto" else dtype
    if quantization in ("auto", "none"):
        return Precision(own, "none")
    check_packable(checkpoint, quantization, torch.device(device.name).type)
    return Precision(own, quantization, kernel=LlmInt8Linear.name if quantization == "int8" else "")


# --- loss ------------------------------------------------------------------------------------------------------------


def _allowed(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Those that change the first block's weights little enough. Files that are not here are not fetched for that: then
    only bf16, which always does."""
    if checkpoint.shards.repo is not None:
        return CHOICES[:2]
    block = load_span(checkpoint, Span(0, 1), dtype=getattr(checkpoint.config, "dtype", None) or torch.float32)
    weights = [m.weight.detach()[:SAMPLE_OUTPUTS] for m in block.modules() if type(m) is nn.Linear]
    little = [name for name in CHOICES[2:] if all(relative_error(weight, name) <= LOSS for weight in weights)]
    return (*CHOICES[:2], *little)


# --- speed -----------------------------------------------------------------------------------------------------------


def _remembered(checkpoint: Checkpoint, threads: int, cache: Path) -> dict[str, float]:
    """Seconds for each of CHOICES, as measured before or now: a peer should not change its mind with each start."""
    shape = max(checkpoint.architecture.block_linears[0], key=lambda shape: shape[0] * shape[1])
    facts = (shape, device_name(torch.device("cpu")), threads, torch.__version__, KERNELS)
    path = cache / "profiles" / f"products-{sha256(repr(facts).encode()).hexdigest()[:32]}.json"
    try:
        known = {str(name): float(value) for name, value in json.loads(path.read_bytes()).items()}
        if known.keys() == set(CHOICES):
            return known
    except (OSError, ValueError, TypeError, AttributeError):  # never measured, or unreadable
        pass
    seconds = {name: _seconds(name, *shape, threads) for name in CHOICES}
    try:
        write_file(path, json.dumps(seconds).encode())
    except OSError as error:
        _log.warning("what was measured can't be kept in %s: %s", path, error)
    return seconds


@torch.inference_mode()
def _seconds(quantization: str, inputs: int, outputs: int, threads: int) -> float:
    """Of a product with a weight of this shape: the geometric mean over ROWS."""
    with rates.threads(threads):
        layers = _copies(quantization, inputs, outputs)
        product = 1.0
        for rows in ROWS:
            x = torch.ones(rows, inputs)
            product *= min(_pass(layers, x) for _ in range(PASSES)) / len(layers)
        return float(product ** (1 / len(ROWS)))


def _pass(layers: list[nn.Module], x: torch.Tensor) -> float:
    began = perf_counter()
    for layer in layers:
        layer(x)
    return perf_counter() - began


def _copies(quantization: str, inputs: int, outputs: int) -> list[nn.Module]:
    """So many equal layers that together they fit into no cache."""
    linear = nn.Linear(inputs, outputs, bias=False)
    if quantization == "none":
        whole = nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for _ in range(_count(linear.weight.nbytes)))
        pack_linears(whole)
        return list(whole)
    packed = pack(linear, quantization).tensors()
    count = _count(sum(tensor.nbytes for tensor in packed.values()))
    return [restore({name: tensor.clone() for name, tensor in packed.items()}) for _ in range(count)]


def _count(size: int) -> int:
    return min(MOST_COPIES, -(-BEYOND_CACHES // size))
