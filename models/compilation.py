"""torch.compile where it can be had."""

import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

logger = logging.getLogger("lexloom.compilation")


def compile_parts(parts: Iterable[nn.Module], device: torch.device | str) -> bool:
    """Has torch compile modules that are alike: when first called one is compiled, and serves for all.

    That takes a C++ compiler, and Triton on a GPU. Where they are missing a warning says so, and the modules
    stay as they are. Returns whether they will be compiled.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning("torch.compile does not work here, so training goes without it: %s", reason)
        return False
    for part in parts:
        part.compile()
    return True


def uncompiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, by modules as they are, even those that `compile_parts` has had compiled."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and its import takes seconds
        return call
    return torch.compiler.set_stance("force_eager")(call)
