"""Choice of the precision of matrix products: bfloat16 or float32.

GPUs since Ampere multiply bfloat16 matrices faster than float32 ones. Some CPUs do as well (AMX, AVX-512
BF16), by a factor that depends on the shapes; others convert inputs and outputs and are slower. So the speed
is measured once per CPU, torch version and shape.
"""

import hashlib
import json
import logging
import os
import platform
import time
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F

Precision = Literal["auto", "float32", "bfloat16"]

MARGIN = 0.9  # bfloat16 must take less than this share of float32's time
MIN_ROWS, MAX_ROWS = 64, 512  # of the layer that is measured
PRODUCTS = 1 << 25  # maximum multiplications in its forward pass, unless that gives too few rows
REPEATS = 5  # the fastest one counts; others may be slowed down by other processes
CACHE = "precision.json"
IDENTITY = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")  # of /proc/cpuinfo

logger = logging.getLogger("lexloom.precision")


class Layer(NamedTuple):
    """A linear layer applied to `rows` rows, representative of a model's matrix products."""

    rows: int
    inputs: int
    outputs: int


def use_bfloat16(precision: Precision, layer: Layer, device: torch.device | str) -> bool:
    """Whether a model of this precision multiplies in bfloat16; "auto" does if it is faster."""
    return precision == "bfloat16" or (precision == "auto" and is_bfloat16_faster(layer, device))


def is_bfloat16_faster(layer: Layer, device: torch.device | str) -> bool:
    """Whether the device computes such a layer faster in bfloat16 than in float32, forward and backward.

    On a CPU this is measured with one thread, since several would wait for each other on a busy machine. The
    measurement is stored in the user's cache folder.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    rows = max(MIN_ROWS, PRODUCTS // (layer.inputs * layer.outputs))
    return _is_faster_on_cpu(layer._replace(rows=min(layer.rows, rows, MAX_ROWS)), cache_file())


@cache
def _is_faster_on_cpu(layer: Layer, file: Path) -> bool:
    key = f"{processor()}, torch {torch.__version__}, {'x'.join(map(str, layer))}"
    known = read_cache(file)
    if key not in known:
        known[key] = measure(layer)
        write_cache(file, known)
    return known[key]["bfloat16"] < MARGIN * known[key]["float32"]


def measure(layer: Layer) -> dict[str, float]:
    """Measure a layer's forward and backward pass in each precision: milliseconds, fastest repeat."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(layer.rows, layer.inputs, generator=generator, requires_grad=True)
    weight = torch.randn(layer.outputs, layer.inputs, generator=generator, requires_grad=True)
    gradient = torch.randn(layer.rows, layer.outputs, generator=generator)
    best = {"float32": float("inf"), "bfloat16": float("inf")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for repeat in range(REPEATS + 1):
        for precision in best:
            started = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                outputs = F.linear(inputs, weight)
            torch.autograd.grad(outputs, (inputs, weight), gradient.to(outputs.dtype))
            milliseconds = 1000 * (time.perf_counter() - started)
            if repeat:  # the first repeat is a warm-up
                best[precision] = min(best[precision], milliseconds)
    torch.set_num_threads(threads)
    return best


# cached measurements


def cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "lexloom" / CACHE


@cache
def processor() -> str:
    """The CPU's name and a digest of its features, since virtual machines may hide the exact model."""
    description = Path("/proc/cpuinfo")
    if not description.is_file():
        return platform.processor() or platform.machine()
    first = description.read_text().partition("\n\n")[0]
    fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    known = {name.strip(): value.strip() for name, value in fields.items() if name.strip() in IDENTITY}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
    return f"{known.get('model name', platform.machine())} ({digest})"


def read_cache(file: Path) -> dict[str, dict[str, float]]:
    """Read the valid measurements in a file; empty if it can't be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: times for key, times in found.items() if is_measurement(times)}


def is_measurement(times: object) -> bool:
    return isinstance(times, dict) and all(
        isinstance(times.get(name), int | float) for name in ("float32", "bfloat16")
    )


def write_cache(file: Path, known: dict[str, dict[str, float]]) -> None:
    """Write the file atomically. If that fails, the next process measures again."""
    writing = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        writing.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        writing.replace(file)
    except OSError as error:
        logger.info("the precision measurement is not saved: %s is not writable (%s)", file, error)
