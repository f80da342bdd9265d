"""Where bfloat16 is worth its rounding."""

from functools import cache
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def in_bfloat16(precision: Precision, device: torch.device | str) -> bool:
    """Whether a model of this precision multiplies in bfloat16; "auto" does where it pays."""
    return precision == "bfloat16" or (precision == "auto" and bfloat16_pays(device))


def bfloat16_pays(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32's.

    GPUs since Ampere do; of processors those with matrix tiles (AMX), 5 times as fast at 128 x 512. Others
    convert on the way in and out, and lose.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return processor_has_tiles()


@cache
def processor_has_tiles() -> bool:
    description = Path("/proc/cpuinfo")  # torch's own way to ask is private
    return description.is_file() and "amx_bf16" in description.read_text()
