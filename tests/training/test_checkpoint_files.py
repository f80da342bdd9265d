"""Checkpoints: complete or absent; the newest undamaged one of the same run is loaded."""

import logging
from pathlib import Path

import pytest
import torch

from lexloom.training.checkpoint_files import Checkpoint, Checkpoints


def checkpoint(value: float) -> Checkpoint:
    state = {"step": value, "history": [{"loss": 0.1 + value}]}
    return Checkpoint({"table": torch.full((3, 4), value)}, state)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run", "fingerprint")


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(folder.name for folder in checkpoints.folder.iterdir())


def test_saved_checkpoint_is_loaded_bit_for_bit(checkpoints: Checkpoints) -> None:
    assert checkpoints.load() is None
    saved = checkpoint(1.1)
    saved.sync = {"momentum": torch.tensor([0.1, 0.2])}
    checkpoints.save(10, saved)
    found = checkpoints.load()
    assert found is not None
    assert torch.equal(found.tensors["table"], saved.tensors["table"])
    assert torch.equal(found.sync["momentum"], saved.sync["momentum"])
    assert found.state == saved.state


def test_best_checkpoint_is_kept(checkpoints: Checkpoints) -> None:
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2), (6, 6), (7, 6)):
        checkpoints.save(step, checkpoint(step), best=best)
        found = checkpoints.load_step(best)
        assert found is not None
        assert found.state["step"] == best
    assert names(checkpoints) == ["step-0000000006", "step-0000000007"]


def test_every_worker_loads_its_own_state(checkpoints: Checkpoints) -> None:
    checkpoints.open()
    for worker in (1, 2):
        checkpoints.save_local(3, worker, {"moment": torch.tensor(float(worker))})
    checkpoints.save(3, checkpoint(3), workers=3, local=(1, 2))
    for worker in range(3):
        found = checkpoints.load(worker=worker, workers=3)
        assert found is not None
        assert (found.local or {}).get("moment") == (worker or None)
    found = checkpoints.load(worker=1, workers=2)
    assert found is not None
    assert found.local is None  # it was saved by another number of workers


def test_unwritable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        NotADirectoryError, match=r"^the checkpoint folder .* is not writable \(Not a directory\)"
    ):
        Checkpoints(tmp_path / "file" / "run", "fingerprint").open()
    with pytest.raises(
        FileExistsError, match=r"^the checkpoint folder .*file is not writable \(File exists\)"
    ):
        Checkpoints(tmp_path / "file", "fingerprint").open()


def test_only_the_newest_checkpoints_are_kept(checkpoints: Checkpoints) -> None:
    left = checkpoints.folder / ".writing-0000000010"  # by a process that died while it wrote
    left.mkdir(parents=True)
    (left / "worker-0007.safetensors").write_bytes(b"half")
    for step in (9, 10, 11, 100):
        checkpoints.save(step, checkpoint(step))
    assert names(checkpoints) == ["step-0000000011", "step-0000000100"]
    assert not (checkpoints.folder / "step-0000000100" / "worker-0007.safetensors").exists()
    found = checkpoints.load()
    assert found is not None
    assert found.state["step"] == 100


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"short"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "sync.safetensors").unlink(),
        lambda folder: (folder / "worker-0001.safetensors").write_bytes(b""),
        lambda folder: (folder / "state.json").write_text('{"step": 9}'),
        lambda folder: (folder / "state.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"half'),
        lambda folder: (folder / "manifest.json").write_text('{"fingerprint": "fingerprint"}'),
        lambda folder: (folder / "manifest.json").write_text('{"sha256": {"../../secret": "0"}}'),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
)
def test_damaged_checkpoint_falls_back_to_the_previous_one(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture, harm: object
) -> None:
    checkpoints.open()
    for step in (1, 2):
        checkpoints.save_local(step, 1, {"moment": torch.ones(1)})
        checkpoints.save(step, checkpoint(step), workers=2, local=(1,))
    harm(checkpoints.folder / "step-0000000002")  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, "lexloom"):
        found = checkpoints.load()
    assert found is not None
    assert found.state["step"] == 1
    assert "step-0000000002 is damaged" in caplog.text


def test_checkpoint_of_another_run_is_rejected(checkpoints: Checkpoints) -> None:
    checkpoints.save(1, checkpoint(1))
    with pytest.raises(ValueError, match="belongs to another run"):
        Checkpoints(checkpoints.folder, "another").load()
