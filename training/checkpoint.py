"""Checkpoints: all that a run needs to go on as if nothing had happened, in one atomic step.

    checkpoints/step-00000400/tensors.safetensors
    checkpoints/step-00000400/state.json        written last: digest, cursor, history, fingerprint

A folder is written under another name and renamed, so a reader sees a whole checkpoint or none. One whose
digest does not fit is passed over, with a warning, for the one before it.
"""

import hashlib
import json
import logging
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

TENSORS = "tensors.safetensors"
STATE = "state.json"
KEPT = 2

logger = logging.getLogger("lexloom.checkpoint")


@dataclass
class Checkpoint:
    """`tensors`: the trainable's state. `state`: plain JSON values (cursor, history, clock)."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in one folder.

    `fingerprint` names the run's config and data; a checkpoint with another one is refused with a ValueError.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Writes the checkpoint of `step` and removes all but the newest few."""
        self.folder.mkdir(parents=True, exist_ok=True)
        writing = self.folder / f".writing-{uuid.uuid4().hex}"
        writing.mkdir()
        try:
            tensors = {name: tensor.contiguous().cpu() for name, tensor in checkpoint.tensors.items()}
            save_file(tensors, writing / TENSORS)
            state = {
                "fingerprint": self.fingerprint,
                "sha256": digest(writing / TENSORS),
                "state": checkpoint.state,
            }
            with (writing / STATE).open("w") as file:
                json.dump(state, file)
                file.flush()
                os.fsync(file.fileno())
            final = self.folder / f"step-{step:010d}"
            shutil.rmtree(final, ignore_errors=True)
            writing.rename(final)
        finally:
            shutil.rmtree(writing, ignore_errors=True)
        for old in self._newest_first()[KEPT:]:
            shutil.rmtree(old)
        for left in self.folder.glob(".writing-*"):  # by a run that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none."""
        for folder in self._newest_first():
            try:
                written = json.loads((folder / STATE).read_text())
                if digest(folder / TENSORS) != written["sha256"]:
                    raise ValueError("the digest of its tensors differs")
                tensors = load_file(folder / TENSORS)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                logger.warning("the checkpoint %s is damaged (%s); using the one before", folder, error)
                continue
            if written["fingerprint"] != self.fingerprint:
                raise ValueError(
                    f"the checkpoint {folder} is of another run (other configuration or data):"
                    " remove that folder, or train into another one"
                )
            return Checkpoint(tensors, written["state"])
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
