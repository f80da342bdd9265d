"""The planned length of a run, and the seed of each step."""

import hashlib
from itertools import count

from lexloom.training.stopping import Stopping
from lexloom.training.stream import ShardStream


def plan_length(stream: ShardStream, stopping: Stopping) -> tuple[int, int]:
    """Count the examples and steps until max_epochs or max_steps ends a run (steps: estimated)."""
    if stopping.max_steps is None:
        assert stopping.max_epochs is not None  # Stopping
        return stopping.max_epochs * stream.examples, stopping.max_epochs * stream.epoch(0).steps
    examples = steps = 0
    for number in count() if stopping.max_epochs is None else range(stopping.max_epochs):
        epoch = stream.epoch(number)
        examples += epoch.examples_until(stopping.max_steps - steps)
        steps += epoch.steps
        if steps >= stopping.max_steps:
            return examples, stopping.max_steps
    return examples, steps


def step_seed(*parts: int) -> int:
    """A 63-bit seed that depends only on the position in the run where it is used."""
    text = ",".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
