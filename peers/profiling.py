"""Measures how fast blocks compute here, once: a machine that has measured it before reads the result.

Every figure is the best of a few passes. Other work on the machine only ever makes a pass slower, and what was measured
while others had the processor is not kept for the next start.
"""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from peers.pages import PageTable, RowSlice
from peers.span import BlockSpan
from routing.perf import Profile
from swarm.atomic import write_file
from swarm.ids import Digest
from swarm.packing import KERNELS

__all__ = ["device_name", "load_or_measure", "measure", "profile_path", "read_profile"]

logger = logging.getLogger(__name__)

BATCH = 8  # rows
CONTEXT = 64  # tokens that a row has when it decodes
PROMPT = 128  # tokens
SECONDS = 0.5  # for each figure
PASSES = 20  # for each figure, at most
UNDISTURBED = 0.95  # processor seconds in a second, at least
LEAST_PASSES = 2  # the first warms up


def load_or_measure(span: BlockSpan, model: Digest, quantization: str, cache: Path) -> Profile:
    """The profile of such blocks on this device, from `cache` or measured now and put there."""
    threads, streaming = torch.get_num_threads(), "" if span.window is None else span.window.name
    path = profile_path(model, span.dtype, quantization, span.device, threads, cache, streaming)
    known = read_profile(path)
    if known is not None:
        return known
    began, worked = time.perf_counter(), time.process_time()
    profile = measure(span)
    if span.device.type == "cpu" and time.process_time() - worked < UNDISTURBED * (time.perf_counter() - began):
        logger.info("other work slowed the measurement of this machine; the next start measures again")
        return profile
    try:
        write_file(path, json.dumps(asdict(profile)).encode())
    except OSError as error:  # the next start measures again, that is all
        logger.warning("what was measured can't be kept in %s: %s", path, error)
    return profile


def read_profile(path: Path) -> Profile | None:
    """What was measured before; None where nothing can be read."""
    try:
        return Profile(**{name: float(value) for name, value in json.loads(path.read_bytes()).items()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("measuring again, since %s can't be read: %s", path, error)
        return None


def measure(span: BlockSpan) -> Profile:
    """A few seconds at most, on a small part of the KV cache, which is empty before and after."""
    share = span.pool.pages // BATCH * span.pool.page_size  # tokens that each row may have
    context = max(0, min(CONTEXT, share - 1))
    rows = BATCH if share else 1
    prompt = min(PROMPT, span.pool.tokens)
    blocks = len(span.blocks)
    whole = _seconds(span, rows=1, at=context, n=1)
    first = _seconds(span, rows=1, at=context, n=1, layers=slice(0, 1)) if blocks > 1 else whole
    row = (whole - first) / (blocks - 1) if blocks > 1 else whole
    overhead = min(max(0.0, first - row), whole / 2)  # noise must not leave nothing for the blocks
    several = _seconds(span, rows=rows, at=context, n=1)
    return Profile(
        overhead=overhead,
        row=(whole - overhead) / blocks,
        extra_row=max(0.0, several - whole) / max(1, rows - 1) / blocks,
        prompt_token=_seconds(span, rows=1, at=0, n=prompt) / prompt / blocks,
    )


def _seconds(span: BlockSpan, *, rows: int, at: int, n: int, layers: slice | None = None) -> float:
    """Seconds of a pass in which each of `rows` rows adds `n` tokens to `at` that it has."""
    hidden = torch.randn(rows * n, span.hidden_size, generator=torch.Generator().manual_seed(0))
    with _tables(span, rows) as tables:
        if at:
            for table in tables:
                table.extend(at)
                span.forward(torch.zeros(at, span.hidden_size), [RowSlice(table, 0, at)])
        for table in tables:
            table.extend(n)
        slices = [RowSlice(table, at, n) for table in tables]
        return _best(lambda: span.forward(hidden, slices, layers).to("cpu"))


def _best(run: Callable[[], object]) -> float:
    """The shortest time that `run` takes, seconds."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < LEAST_PASSES or (len(times) < PASSES and time.perf_counter() < end):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


@contextmanager
def _tables(span: BlockSpan, rows: int) -> Iterator[list[PageTable]]:
    tables = [PageTable(span.pool) for _ in range(rows)]
    try:
        yield tables
    finally:
        for table in tables:
            table.release()


def profile_path(
    model: Digest,
    dtype: torch.dtype,
    quantization: str,
    device: torch.device,
    threads: int,
    cache: Path,
    streaming: str = "",
) -> Path:
    """Where the profile is kept. Its name comes from everything that speed depends on; `streaming`: what of the span
    is read anew in each step."""
    facts = (model, str(dtype), quantization, device_name(device), threads, torch.__version__, KERNELS, streaming)
    return cache / "profiles" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
