"""The machine: memory, the limit of open files, the GPU and what torch makes of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from clients.doctor.finding import Finding, fail, fine, skipped, warn
from clients.terminal.sizes import size

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

__all__ = ["memory", "open_files", "torch_and_gpu"]

LEAST_MEMORY = 1 << 30  # bytes: a peer's processes take 0.6 GiB without any weights
FEW_FILES, USUAL_FILES = 256, 1024  # each stream of a session is a socket of two processes
PROBE_PATIENCE = 60.0  # seconds; torch comes slowly from a cold disk, and a driver may hang

# Run in a process of its own: a broken installation or driver may crash or hang whoever asks.
PROBE = """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "devices": []}
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        torch.zeros(8, device=f"cuda:{index}").sum().item()
        free, total = torch.cuda.mem_get_info(index)
        found["devices"].append([torch.cuda.get_device_name(index), free, total])
print(json.dumps(found))
"""


def memory() -> Finding:
    free = psutil.virtual_memory().available
    if free < LEAST_MEMORY:
        todo = f"close something: a peer needs {size(LEAST_MEMORY)} and its blocks"
        return warn("memory", f"{size(free)} are free", todo)
    return fine("memory", f"{size(free)} of {size(psutil.virtual_memory().total)} are free")


def open_files() -> Finding:
    if resource is None:
        return skipped("open files", "this system has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= USUAL_FILES:
        return fine("open files", "no limit" if soft == unlimited else f"{soft} at once")
    says = f"this shell lets a program open only {soft} files at once"
    reach = "" if hard == unlimited or hard >= USUAL_FILES else " (an administrator has to allow more)"
    todo = f"run first: ulimit -n {USUAL_FILES * 4}{reach}"
    return fail("open files", says, todo) if soft < FEW_FILES else warn("open files", says, todo)


def torch_and_gpu() -> list[Finding]:
    """Takes seconds: it loads torch in another process."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, timeout=PROBE_PATIENCE, check=False, text=True
        )
    except subprocess.TimeoutExpired:
        says = f"torch did not answer within {PROBE_PATIENCE:.0f} s: the GPU's driver may hang"
        return [fail("GPU", says, "serve with --device cpu, or restart the machine")]
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2][:200]
        return [fail("torch", f"torch can't be used: {last}", "install it again, see its install page")]
    found = json.loads(done.stdout.rpartition("\n{")[2] if "\n{" in done.stdout else done.stdout)
    return [fine("torch", f"torch {found['version']} loads"), _gpu(found)]


def _gpu(found: dict[str, object]) -> Finding:
    devices = found["devices"]
    if isinstance(devices, list) and devices:
        told = "; ".join(f"{name}, {size(free)} of {size(total)} free" for name, free, total in devices)
        return fine("GPU", told)
    if not (Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi")):
        return fine("GPU", "none; blocks are computed on the CPU")
    if found["cuda"] is None:
        says = "an NVIDIA GPU is here, but torch is a build for CPUs alone"
        return warn("GPU", says, "install torch with CUDA, see its install page; until then the CPU computes")
    says = f"an NVIDIA GPU is here, but torch (CUDA {found['cuda']}) can't use it"
    return warn("GPU", says, "update the driver (nvidia-smi says which it is); until then the CPU computes")
