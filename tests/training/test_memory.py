"""Test of the memory that the C library keeps for reuse."""

import platform
import subprocess
import sys

import pytest

from lexloom.training import memory

# touches 16 MB a hundred times, and counts the pages that the system had to provide
PROGRAM = """
import resource, sys
import torch
from lexloom.training.memory import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
torch.set_num_threads(1)
torch.ones(1 << 22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    torch.ones(1 << 22)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_page_faults(mode: str) -> tuple[bool, int]:
    command = [sys.executable, "-c", PROGRAM, mode]
    kept, faults = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return kept == "True", int(faults)


def test_freed_memory_is_used_again() -> None:
    kept, faults = count_page_faults("keep")
    assert kept == (platform.libc_ver()[0] == "glibc")
    if kept:
        assert faults < 100_000, "without, the system provides 100 x 4,096 pages"


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed_memory()
