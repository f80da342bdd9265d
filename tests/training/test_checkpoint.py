"""Checkpoints: whole or not there, the newest good one, never a foreign one."""

import logging
from pathlib import Path

import pytest
import torch

from training.checkpoint import KEPT, Checkpoint, Checkpoints


def checkpoint(value: float) -> Checkpoint:
    state = {"step": value, "history": [{"loss": 0.1 + value}]}
    return Checkpoint({"table": torch.full((3, 4), value)}, state)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run", "fingerprint")


def test_what_is_saved_comes_back_to_the_bit(checkpoints: Checkpoints) -> None:
    assert checkpoints.load() is None
    checkpoints.save(10, checkpoint(1.1))
    found = checkpoints.load()
    assert found is not None
    assert torch.equal(found.tensors["table"], checkpoint(1.1).tensors["table"])
    assert found.state == checkpoint(1.1).state


def test_only_the_newest_few_are_kept_and_left_overs_go(checkpoints: Checkpoints) -> None:
    checkpoints.folder.mkdir()
    (checkpoints.folder / ".writing-by-a-dead-process").mkdir()
    for step in (9, 10, 11, 100):
        checkpoints.save(step, checkpoint(step))
    assert len(list(checkpoints.folder.iterdir())) == KEPT
    found = checkpoints.load()
    assert found is not None
    assert found.state["step"] == 100


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "tensors.safetensors").write_bytes(b"short"),
        lambda folder: (folder / "tensors.safetensors").unlink(),
        lambda folder: (folder / "state.json").write_text('{"half'),
        lambda folder: (folder / "state.json").unlink(),
    ],
)
def test_a_damaged_newest_one_falls_back_to_the_one_before_and_says_so(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture, harm: object
) -> None:
    for step in (1, 2):
        checkpoints.save(step, checkpoint(step))
    harm(checkpoints.folder / "step-0000000002")  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, "lexloom"):
        found = checkpoints.load()
    assert found is not None
    assert found.state["step"] == 1
    assert "step-0000000002 is damaged" in caplog.text


def test_a_foreign_checkpoint_is_refused(checkpoints: Checkpoints) -> None:
    checkpoints.save(1, checkpoint(1))
    with pytest.raises(ValueError, match="is of another run"):
        Checkpoints(checkpoints.folder, "another").load()
