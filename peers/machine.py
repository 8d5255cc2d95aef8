"""What this machine can give: its device, the memory that is free on it, its cores.

CUDA is asked in a process of its own, so that the network process neither imports torch for it nor holds a context.
"""

import asyncio
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from swarm.errors import UsageError

__all__ = ["Device", "count_gpus", "find_device", "free_memory", "may_have_cuda", "physical_cores"]

SHARE = 0.8  # of what is free; the rest is for activations, libraries and everyone else's work
PROBE_PATIENCE = 60.0  # seconds; importing torch from a cold disk is slow
CGROUP = Path("/sys/fs/cgroup")

# Run in a process of its own; prints what torch knows of one CUDA device.
_PROBE = """
import json, sys, torch
index = int(sys.argv[1])
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
found = {"count": count, "built": torch.version.cuda is not None}
if index < count:
    free, _ = torch.cuda.mem_get_info(index)
    found |= {"free": free, "name": torch.cuda.get_device_name(index), "bf16": torch.cuda.is_bf16_supported()}
print(json.dumps(found))
"""


_known: dict[int, dict[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Device:
    """Where blocks are computed. `name` as torch writes it; `memory`: bytes that blocks and KV may fill."""

    name: str
    label: str
    memory: int
    bf16: bool = False  # whether bf16 is at home on it


async def find_device(wanted: str) -> Device:
    """The device for `--device`, "auto" included. Raises UsageError when this machine does not have it."""
    if wanted == "auto" and not may_have_cuda():
        return _processor("cpu")
    if wanted in ("cpu", "mps"):
        return _processor(wanted)
    index = int(wanted.partition(":")[2] or 0)
    found = await _probe_cuda(index)
    if found.get("free") is not None:
        return Device(f"cuda:{index}", str(found["name"]), int(found["free"] * SHARE), bool(found["bf16"]))
    if wanted == "auto":
        return _processor("cpu")
    if not found["built"]:
        raise UsageError(f"--device {wanted}: the torch installed here is built without CUDA; give --device cpu")
    raise UsageError(f"--device {wanted}: torch finds {found['count']} CUDA devices here; give --device cpu or another")


async def count_gpus() -> int:
    """CUDA devices that torch finds here. Raises UsageError when CUDA can't be asked."""
    return int((await _probe_cuda(0))["count"]) if may_have_cuda() else 0


def physical_cores() -> int:
    """Cores that this process may use, hyper-threads not counted."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable))


def free_memory(cgroup: Path = CGROUP) -> int:
    """Bytes of RAM that are free to us: of the machine, or of the container if that is less."""
    free = int(psutil.virtual_memory().available)
    limit, used = _read_number(cgroup / "memory.max"), _read_number(cgroup / "memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free


def _processor(name: str) -> Device:
    if name == "mps" and sys.platform != "darwin":
        raise UsageError("--device mps: only Macs have it; give --device cpu or cuda")
    return Device(name, f"{physical_cores()} cores", int(free_memory() * SHARE))


def may_have_cuda() -> bool:
    """Whether it is worth asking torch."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


async def _probe_cuda(index: int) -> dict[str, Any]:
    """Of one device, asked once: that takes an import of torch."""
    if index not in _known:
        _known[index] = await _ask_cuda(index)
    return _known[index]


async def _ask_cuda(index: int) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROBE, str(index), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PROBE_PATIENCE):
            output, errors = await process.communicate()
    except TimeoutError:
        raise UsageError(f"CUDA did not answer within {PROBE_PATIENCE:.0f} s; give --device cpu") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise UsageError(f"CUDA can't be used here ({last}); give --device cpu")
    found: dict[str, Any] = json.loads(output)
    return found


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no cgroup, or the word "max"
        return None
