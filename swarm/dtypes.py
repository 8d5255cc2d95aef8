"""The names that plain floats go by: on command lines, in settings and records, and on the wire."""

import torch

__all__ = ["DTYPES", "NAMES"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
