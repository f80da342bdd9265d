"""torch.compile where it is supported."""

import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

logger = logging.getLogger("lexloom.compilation")


def compile_modules(modules: Iterable[nn.Module], device: torch.device | str) -> bool:
    """Compile identical modules with torch.compile: the first call of one compiles the code for all.

    That requires a C++ compiler, and Triton on a GPU. If they are missing, log a warning and leave the
    modules as they are. Returns whether they will be compiled.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning("torch.compile is not available, training without it: %s", reason)
        return False
    for module in modules:
        module.compile()
    return True


def without_compilation(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a call so that it runs all modules uncompiled."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled; importing it takes seconds
        return call
    return torch.compiler.set_stance("force_eager")(call)
