"""Checkpoints: everything a run needs to resume exactly, written atomically.

    checkpoints/step-0000000400/model.safetensors    the trainable's state: weights and optimizer
                                sync.safetensors     the synchronization strategy's state
                                worker-0001.safetensors ...    if the workers' states differ
                                pieces-0000.safetensors ...    every worker's pieces of a partitioned model,
                                                     instead of model.safetensors
                                state.json           position, clock, history, scores
                                manifest.json        written last: fingerprint, digests, names of pieces

A folder is written under a temporary name and renamed, so a reader sees a complete checkpoint or none. If a
checkpoint's digests do not match, it is skipped with a warning, and the one before it is used. No random
states are saved, since random numbers are a function of the position in the run
(`lexloom.training.job.step_seed`).
"""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MODEL = "model.safetensors"
SYNC = "sync.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"

logger = logging.getLogger("lexloom.checkpoint")


@dataclass
class Checkpoint:
    """The contents of a checkpoint.

    Attributes:
        tensors: the trainable's state; worker 0's if the workers' states differ. Of a partitioned model, the
            pieces of all workers; empty when it is saved. Loaded tensors are mapped files, of which only
            those that are used occupy memory.
        state: plain JSON values (position, history, clock).
        sync: the synchronisation strategy's state.
        local: this worker's own state; None if none was saved for it. Only in loaded checkpoints.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    sync: dict[str, Tensor] = field(default_factory=dict)
    local: dict[str, Tensor] | None = None


class Checkpoints:
    """The checkpoints of one run, in a folder that all workers share.

    `fingerprint` is a digest of the run's config and data; a checkpoint with a different one raises a
    ValueError. The newest `keep` checkpoints are kept, and the best one.
    """

    def __init__(self, folder: Path, fingerprint: str, keep: int = 2) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.keep = keep

    def open(self) -> None:
        """Create the folder, and check that it is writable.

        Raises:
            OSError: it is not.
        """
        probe = self.folder / f".probe-{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise type(error)(
                f"the checkpoint folder {self.folder} is not writable ({error.strerror}): fix its"
                " permissions, or train into another folder"
            ) from error

    def save_local(self, step: int, worker: int, tensors: Mapping[str, Tensor]) -> Path:
        """Write one worker's own state for the checkpoint of `step`, before worker 0 calls `save`.

        Returns the file's path, which is valid until worker 0 has called `save`.
        """
        return self._save_early(step, local_name(worker), tensors)

    def save_pieces(self, step: int, worker: int, tensors: Mapping[str, Tensor]) -> None:
        """Write one worker's pieces for the checkpoint of `step`, before worker 0 calls `save`."""
        self._save_early(step, pieces_name(worker), tensors)

    def save(
        self,
        step: int,
        checkpoint: Checkpoint,
        *,
        workers: int = 1,
        local: Collection[int] = (),
        partitioned: bool = False,
        best: int | None = None,
    ) -> Path:
        """Write the checkpoint of `step`; then delete all but the newest ones and that of step `best`.

        `workers` is the number of workers, and `local` lists those that have called `save_local`. If the
        model is `partitioned`, all have called `save_pieces`. Returns the checkpoint's folder.
        """
        temporary = self._temporary(step)
        pieces = [pieces_name(worker) for worker in range(workers)] if partitioned else []
        names = [*(local_name(worker) for worker in local), *pieces]
        temporary.mkdir(parents=True, exist_ok=True)
        for leftover in temporary.iterdir():  # of a run that was killed while writing
            if leftover.name not in names:
                leftover.unlink()
        if not partitioned:
            write_tensors(temporary / MODEL, checkpoint.tensors)
            names.append(MODEL)
        write_tensors(temporary / SYNC, checkpoint.sync)
        write_json(temporary / STATE, checkpoint.state)
        manifest = {
            "fingerprint": self.fingerprint,
            "workers": workers,
            "sha256": {name: digest(temporary / name) for name in [SYNC, STATE, *names]},
        }
        if partitioned:
            manifest["pieces"] = sorted(read_pieces(temporary, workers))
        write_json(temporary / MANIFEST, manifest)
        final = self._final(step)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one that was skipped
        temporary.rename(final)
        newest = self._newest_first()
        for old in newest[self.keep :]:
            if best is None or old != self._final(best):
                shutil.rmtree(old)
        for leftover in self.folder.glob(".writing-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        return final

    def load(self, *, worker: int = 0, workers: int = 1) -> Checkpoint | None:
        """Load the newest undamaged checkpoint; None if there is none.

        `local` is set if this worker saved its own state and the number of workers is the same.
        """
        for folder in self._newest_first():
            if (found := self._read(folder, "using the previous one", worker, workers)) is not None:
                return found
        return None

    def load_step(self, step: int) -> Checkpoint | None:
        """Load the checkpoint of one step, for example the best one; None if it is damaged or missing."""
        return self._read(self._final(step), "ignoring it")

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, from its name; None if there is none."""
        newest = next(iter(self._newest_first()), None)
        return None if newest is None else int(newest.name.removeprefix("step-"))

    def describe_resume(self) -> str:
        """Describe where the same command would resume, as the end of a sentence."""
        if (step := self.newest_step()) is None:
            return "no checkpoint was written: run the same command again to restart training"
        return f"run the same command again to resume from step {step:,}"

    def _read(self, folder: Path, remedy: str, worker: int = 0, workers: int = 1) -> Checkpoint | None:
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            for name, expected in manifest["sha256"].items():
                if name != Path(name).name:
                    raise ValueError(f"its manifest names {name!r}, which is outside its folder")
                if digest(folder / name) != expected:
                    raise ValueError(f"the digest of {name} differs")
            if (pieces := manifest.get("pieces")) is None:
                tensors = load_file(folder / MODEL)
            else:
                tensors = read_pieces(folder, manifest["workers"])
                if missing := sorted(set(pieces) - tensors.keys()):
                    raise ValueError(f"the piece {missing[0]} is missing")
            sync = load_file(folder / SYNC)
            own = local_name(worker)
            has_local = own in manifest["sha256"] and manifest["workers"] == workers
            local = load_file(folder / own) if has_local else None
            state = json.loads((folder / STATE).read_text())
            fingerprint = manifest["fingerprint"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("the checkpoint %s is damaged (%s); %s", folder, error, remedy)
            return None
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"the checkpoint {folder} belongs to another run (different configuration or data):"
                " delete that folder, or use another one"
            )
        return Checkpoint(tensors, state, sync, local)

    def _save_early(self, step: int, name: str, tensors: Mapping[str, Tensor]) -> Path:
        temporary = self._temporary(step)
        temporary.mkdir(parents=True, exist_ok=True)
        write_tensors(temporary / name, tensors)
        return temporary / name

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _final(self, step: int) -> Path:
        return self.folder / f"step-{step:010d}"

    def _temporary(self, step: int) -> Path:
        return self.folder / f".writing-{step:010d}"


def local_name(worker: int) -> str:
    return f"worker-{worker:04d}.safetensors"


def pieces_name(worker: int) -> str:
    return f"pieces-{worker:04d}.safetensors"


def read_pieces(folder: Path, workers: int) -> dict[str, Tensor]:
    """Map the pieces that `workers` workers have written; they are read when they are used.

    Raises:
        ValueError: two workers have written the same piece.
    """
    pieces: dict[str, Tensor] = {}
    for worker in range(workers):
        found = load_file(folder / pieces_name(worker))
        if twice := sorted(pieces.keys() & found.keys()):
            raise ValueError(f"{folder} has the piece {twice[0]} of several workers")
        pieces |= found
    return pieces


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # not an OSError, even if the disk is full
        raise OSError(f"the checkpoint {path} can't be written: {error}") from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    with path.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
