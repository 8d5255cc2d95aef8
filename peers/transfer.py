"""Hidden states to and from the device: by way of pinned memory, where a GPU reads and writes main memory itself."""

import torch
from torch import Tensor

__all__ = ["to_device", "to_host"]


def to_device(states: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A contiguous copy there, of which nobody else knows."""
    pinned = device.type == "cuda" and states.device.type == "cpu"
    if pinned:
        states = states.pin_memory()
    return states.to(device=device, dtype=dtype, non_blocking=pinned, copy=True, memory_format=torch.contiguous_format)


def to_host(states: Tensor) -> Tensor:
    """The same in main memory, once the device has got there."""
    if states.device.type != "cuda":
        return states.to("cpu")
    host = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
    host.copy_(states, non_blocking=True)
    torch.cuda.current_stream(states.device).synchronize()
    return host
