"""When workers read worker 0's clock, and what is due then."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lexloom.training import clock
from lexloom.training.clock import Clock
from lexloom.training.job import TrainState
from tests.training.toy import job


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the time."""
    times = [0.0]
    monkeypatch.setattr("lexloom.training.clock.time.perf_counter", lambda: times[0])

    def set_time(seconds: float) -> None:
        times[0] = seconds

    return set_time


def due(ticking: Clock, state: TrainState, step: int) -> bool:
    state.step = step
    reading = ticking.read(state)
    assert reading is not None
    return reading.checkpoint


def test_checkpoints_are_a_minute_apart_and_take_two_percent_at_most(
    tmp_path: Path, now: Callable[[float], None]
) -> None:
    state = TrainState()
    ticking = Clock(job(tmp_path), state, 0, 1, lambda: False)
    now(59.0)
    assert not due(ticking, state, 1)
    now(60.0)
    assert due(ticking, state, 2)
    now(61.0)
    ticking.record_checkpoint(cost=1.0)
    now(120.0)
    assert not due(ticking, state, 3)
    now(121.0)
    assert due(ticking, state, 4)
    ticking.record_checkpoint(cost=10.0)
    now(121.0 + 499.0)
    assert not due(ticking, state, 5)
    now(121.0 + 500.0)
    assert due(ticking, state, 6)


def test_resumed_run_continues_counting(tmp_path: Path, now: Callable[[float], None]) -> None:
    now(1000.0)
    state = TrainState(step=7, seconds=300.0, next_clock_reading=8)
    ticking = Clock(job(tmp_path), state, 0, 1, lambda: False)
    now(1010.0)
    assert ticking.seconds() == 310.0
    assert not due(ticking, state, 8), "ten seconds after the last one"


def test_several_workers_read_the_clock_about_twice_a_second(
    tmp_path: Path, now: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 steps of 1/128 s take half a second; after steps of a minute the clock is read every time."""
    monkeypatch.setattr(clock, "sum_over_workers", lambda values, world_size, device: list(values))
    for step_seconds, looks in ((1 / 128, [1, 3, 7, 15, 31, 63, 127, 191]), (60.0, [1, 2, 3])):
        now(0.0)
        state = TrainState()
        ticking = Clock(job(tmp_path), state, 0, 2, lambda: False)
        looked = []
        for step in range(1, looks[-1] + 1):
            now(step * step_seconds)
            state.step = step
            if ticking.read(state) is not None:
                looked.append(step)
        assert looked == looks
