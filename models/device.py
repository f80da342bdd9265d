"""The device on which a model runs."""

import torch


def count_gpus() -> int:
    """Return the number of GPUs that torch can use on this machine."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find_device(device: str) -> str:
    """Return the device; "auto" is "cuda" if this machine has a GPU, and otherwise "cpu"."""
    if device != "auto":
        return device
    return "cuda" if count_gpus() else "cpu"
