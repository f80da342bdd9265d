"""Checkpoints: complete or absent; the newest undamaged one of the same run is loaded."""

import json
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


def save_pieces(checkpoints: Checkpoints, step: int, workers: int) -> None:
    """Save pieces 0 to 5, whose values are 10 times the step and their numbers, of some workers."""
    for worker in range(workers):
        numbers = range(6 * worker // workers, 6 * (worker + 1) // workers)
        pieces = {f"rows.{number}": torch.tensor(10.0 * step + number) for number in numbers}
        checkpoints.save_pieces(step, worker, pieces)
    checkpoints.save(step, Checkpoint({}, {"step": step}), workers=workers, partitioned=True)


def test_pieces_of_all_workers_are_loaded_by_any_worker(checkpoints: Checkpoints) -> None:
    left = checkpoints.folder / ".writing-0000000003"  # by three workers that died while they wrote
    left.mkdir(parents=True)
    (left / "pieces-0002.safetensors").write_bytes(b"half")
    save_pieces(checkpoints, 3, workers=2)
    assert {path.name for path in checkpoints.folder.glob("*/*")} == {
        "pieces-0000.safetensors",
        "pieces-0001.safetensors",
        "state.json",
        "sync.safetensors",
        "manifest.json",
    }
    for worker, workers in ((0, 1), (1, 2), (4, 5)):
        found = checkpoints.load(worker=worker, workers=workers)
        assert found is not None
        assert {name: piece.item() for name, piece in found.tensors.items()} == {
            f"rows.{number}": 30.0 + number for number in range(6)
        }
        assert found.local is None


def test_piece_of_two_workers_is_rejected(checkpoints: Checkpoints) -> None:
    for worker in range(2):
        checkpoints.save_pieces(1, worker, {"rows.0": torch.ones(1)})
    with pytest.raises(ValueError, match=r"has the piece rows\.0 of several workers"):
        checkpoints.save(1, Checkpoint({}, {}), workers=2, partitioned=True)
    assert checkpoints.load() is None


def rewrite_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "pieces-0001.safetensors").unlink(),
        lambda folder: (folder / "pieces-0000.safetensors").write_bytes(b"short"),
        lambda folder: rewrite_manifest(folder, pieces=["rows.0", "rows.6"]),
        lambda folder: rewrite_manifest(folder, workers=3),
    ],
    ids=["no file", "damaged", "no piece", "another number"],
)
def test_checkpoint_without_a_piece_falls_back_to_the_previous_one(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture, harm: object
) -> None:
    for step in (1, 2):
        save_pieces(checkpoints, step, workers=2)
    harm(checkpoints.folder / "step-0000000002")  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, "lexloom"):
        found = checkpoints.load()
    assert found is not None
    assert found.state["step"] == 1
    assert "step-0000000002 is damaged" in caplog.text
    assert "step-0000000001" not in caplog.text


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
