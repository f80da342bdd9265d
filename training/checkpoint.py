"""Checkpoints: all that a run needs to go on as if nothing had happened, in one atomic step.

    checkpoints/step-0000000400/model.safetensors    the trainable's state: weights and optimizer
                                sync.safetensors     what the synchronisation remembers
                                worker-0001.safetensors ...    if the workers' states differ
                                state.json           cursor, clock, history, scores
                                manifest.json        written last: fingerprint and digests

A folder is written under another name and renamed, so a reader sees a whole checkpoint or none. One whose
digests do not fit is passed over, with a warning, for the one before it. Random states are not here: chance
is a function of the place in the run (`lexloom.training.plan.step_seed`).
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
    """What is saved of a run.

    Attributes:
        tensors: the trainable's state; worker 0's where they differ.
        state: plain JSON values (cursor, history, clock).
        sync: the synchronisation's state.
        local: what one worker alone knows; None where it was not saved for this worker. Only in loading.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    sync: dict[str, Tensor] = field(default_factory=dict)
    local: dict[str, Tensor] | None = None


class Checkpoints:
    """The checkpoints of one run, in one folder that all workers see.

    `fingerprint` names the run's config and data; a checkpoint with another one is refused with a ValueError.
    The newest `keep` stay, and the best one.
    """

    def __init__(self, folder: Path, fingerprint: str, keep: int = 2) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.keep = keep

    def open(self) -> None:
        """Sees to it that checkpoints can be written; an OSError of one sentence where they can't."""
        probe = self.folder / f".probe-{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise type(error)(
                f"checkpoints can't be written to {self.folder} ({error.strerror}): give the user that trains"
                " the right to write there, or train into another folder"
            ) from error

    def save_local(self, step: int, worker: int, tensors: Mapping[str, Tensor]) -> Path:
        """Write one worker's own state for the checkpoint of `step`, before worker 0 saves the rest.

        Returns the file, which keeps its path until worker 0 has saved the rest.
        """
        writing = self._writing(step)
        writing.mkdir(parents=True, exist_ok=True)
        path = writing / local_name(worker)
        write_tensors(path, tensors)
        return path

    def save(
        self,
        step: int,
        checkpoint: Checkpoint,
        *,
        workers: int = 1,
        local: Collection[int] = (),
        best: int | None = None,
    ) -> Path:
        """Write the checkpoint of `step` and remove all but the newest few and the one of step `best`.

        `workers` is the number of workers, and `local` lists those that have called `save_local`. Returns the
        checkpoint's folder.
        """
        writing = self._writing(step)
        names = [local_name(worker) for worker in local]
        writing.mkdir(parents=True, exist_ok=True)
        for left in writing.iterdir():  # by a run that was killed while it wrote
            if left.name not in names:
                left.unlink()
        write_tensors(writing / MODEL, checkpoint.tensors)
        write_tensors(writing / SYNC, checkpoint.sync)
        write_json(writing / STATE, checkpoint.state)
        files = [MODEL, SYNC, STATE, *names]
        manifest = {
            "fingerprint": self.fingerprint,
            "workers": workers,
            "sha256": {name: digest(writing / name) for name in files},
        }
        write_json(writing / MANIFEST, manifest)
        final = self._final(step)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one that was passed over
        writing.rename(final)
        newest = self._newest_first()
        for old in newest[self.keep :]:
            if best is None or old != self._final(best):
                shutil.rmtree(old)
        for left in self.folder.glob(".writing-*"):
            shutil.rmtree(left, ignore_errors=True)
        return final

    def load(self, *, worker: int = 0, workers: int = 1) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none.

        `local` is set if this worker saved its own state and the number of workers is the same.
        """
        for folder in self._newest_first():
            if (found := self._read(folder, "using the one before", worker, workers)) is not None:
                return found
        return None

    def load_step(self, step: int) -> Checkpoint | None:
        """The checkpoint of one step, the best one for example; None where it is damaged or gone."""
        return self._read(self._final(step), "doing without it")

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, from its name; None if there is none."""
        newest = next(iter(self._newest_first()), None)
        return None if newest is None else int(newest.name.removeprefix("step-"))

    def describe_resume(self) -> str:
        """Describe where the same command would resume, as the end of a sentence."""
        if (step := self.newest_step()) is None:
            return "there is no checkpoint: the same command starts training from the beginning"
        return f"there is a checkpoint: the same command resumes from step {step:,}"

    def _read(self, folder: Path, remedy: str, worker: int = 0, workers: int = 1) -> Checkpoint | None:
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            for name, expected in manifest["sha256"].items():
                if name != Path(name).name:
                    raise ValueError(f"its manifest names {name!r}, which is outside")
                if digest(folder / name) != expected:
                    raise ValueError(f"the digest of {name} differs")
            tensors, sync = load_file(folder / MODEL), load_file(folder / SYNC)
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
                f"the checkpoint {folder} is of another run (other configuration or data):"
                " remove that folder, or train into another one"
            )
        return Checkpoint(tensors, state, sync, local)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _final(self, step: int) -> Path:
        return self.folder / f"step-{step:010d}"

    def _writing(self, step: int) -> Path:
        return self.folder / f".writing-{step:010d}"


def local_name(worker: int) -> str:
    return f"worker-{worker:04d}.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # which is no OSError even where the disk is full
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
