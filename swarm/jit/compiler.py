"""From LLVM code to something that can be called, with the threads that torch uses."""

import ctypes
import logging
import platform
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

__all__ = ["LANES", "LINE", "PARALLEL", "THREAD", "THREADS", "Compiled", "features"]

_log = logging.getLogger(__name__)

LANES = 16  # 32-bit values that our code computes with at once
LINE = 4 * LANES  # bytes of them
PARALLEL, THREAD, THREADS = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"


@cache
def features() -> Mapping[str, bool]:
    """What this processor can do, by LLVM's names; nothing where code can't be compiled for it or has no threads."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return {}
    try:
        from llvmlite import binding  # heavy, and not needed by everybody

        _openmp()
    except (ImportError, OSError) as error:
        _log.info("no code of our own here: %s", error)
        return {}
    return dict(binding.get_host_cpu_features())


class Compiled:
    """The text of a module. Raises RuntimeError where LLVM fails."""

    def __init__(self, text: str, elsewhere: Mapping[str, int] = MappingProxyType({})) -> None:
        """`elsewhere`: addresses of functions that it calls; of one name always the same."""
        from llvmlite import binding

        openmp = _openmp()
        ours = {name: ctypes.cast(openmp[name], ctypes.c_void_p).value for name in (PARALLEL, THREAD, THREADS)}
        for name, address in {**ours, **elsewhere}.items():
            binding.add_symbol(name, address)
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        machine = binding.Target.from_default_triple().create_target_machine(
            cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
        )
        code = binding.parse_assembly(text)
        passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=2))
        passes.getModulePassManager().run(code, passes)
        self._engine = binding.create_mcjit_compiler(code, machine)
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Of a function, which may be called as long as this object lives."""
        address: int = self._engine.get_function_address(name)
        return address

    def function(self, name: str, *kinds: Any) -> Any:
        """The same, without a result, to be called with these kinds of arguments."""
        return ctypes.CFUNCTYPE(None, *kinds)(self.address(name))


def _openmp() -> ctypes.CDLL:
    """The library whose threads torch uses: they take what torch was told of their number, and may be awake already."""
    torch.get_num_threads()  # loads it
    with Path("/proc/self/maps").open() as maps:
        path = next((line.split(maxsplit=5)[5].strip() for line in maps if "/libgomp" in line), None)
    if path is None:
        raise OSError("torch uses no OpenMP of GCC's")
    return ctypes.CDLL(path)
