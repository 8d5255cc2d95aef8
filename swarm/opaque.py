"""Weights in oneDNN's own order as bytes, and bytes as such weights, so that they can lie in a mapped file.

torch tells their address, their size and a description of their order. The way back is part of the C interface that its
compiled models use (`torch/csrc/inductor/aoti_torch/c/shim.h`). Both are tried once before anyone relies on them.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["OPAQUE", "adopt", "adopts", "content", "description"]

LIBRARY = "libtorch_cpu.so"
OPAQUE: torch.layout = getattr(torch, "_mkldnn")  # noqa: B009 - no stub knows it
TRIED = (64, 48)  # outputs and inputs of the weight with which the way there and back is tried


def content(packed: Tensor) -> memoryview:
    """The bytes of `packed`; valid as long as it lives."""
    kernels: Any = torch.ops.mkldnn
    array = (ctypes.c_ubyte * kernels._nbytes(packed)).from_address(kernels.data_ptr(packed))
    return memoryview(array).cast("B")


def description(packed: Tensor) -> bytes:
    """Of the order of the bytes; means something to this version of torch alone."""
    kernels: Any = torch.ops.mkldnn
    return bytes(kernels._get_mkldnn_serialized_md(packed).numpy())


def adopt(memory: Tensor, shape: list[int], dtype: torch.dtype, described: bytes) -> Tensor:
    """The weight `[out, in]` whose bytes begin where `memory` does, which is kept alive by what is returned."""
    library, handle = _library(), ctypes.c_void_p()
    strides = [shape[1], 1]
    error = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(memory.data_ptr()),
        ctypes.c_int64(len(shape)),
        (ctypes.c_int64 * 2)(*shape),
        (ctypes.c_int64 * 2)(*strides),
        ctypes.c_int64(0),
        getattr(library, f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")(),
        library.aoti_torch_device_type_cpu(),
        ctypes.c_int32(0),
        ctypes.byref(handle),
        library.aoti_torch_layout__mkldnn(),
        described,
        ctypes.c_int64(len(described)),
    )
    if error:
        raise RuntimeError("torch does not take these bytes for a weight in oneDNN's order")
    tensor: Any = _aoti().alloc_tensor_by_stealing_from_void_ptr(_capsule(handle))
    assert isinstance(tensor, Tensor)
    counted: Any = tensor
    if counted._use_count() > 1:  # the handle has been copied and not, as the name says, stolen
        library.aoti_torch_delete_tensor_object(handle)
    tensor._memory = memory  # type: ignore[attr-defined]
    return tensor


@functools.cache
def adopts() -> bool:
    """Whether this works here, for weights that oneDNN can pack."""
    outputs, inputs = TRIED
    weight = torch.arange(outputs * inputs, dtype=torch.float32).view(outputs, inputs)
    try:
        packed: Any = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        memory = torch.frombuffer(bytearray(content(packed)), dtype=torch.uint8)
        return torch.equal(adopt(memory, [outputs, inputs], weight.dtype, description(packed)).to_dense(), weight)
    except (RuntimeError, AttributeError, OSError, TypeError):  # not built in, or another version has it otherwise
        return False


@functools.cache
def _library() -> Any:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / LIBRARY))


def _aoti() -> Any:
    return getattr(torch._C, "_aoti")  # noqa: B009 - no stub knows it


def _capsule(handle: ctypes.c_void_p) -> object:
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return make(handle, None, None)
