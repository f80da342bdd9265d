"""A ledger of the batches that workers take, and the proof that each example was learnt from once an epoch.

Every worker process keeps a page: where the newest checkpoint stood when it took its first batch, and then
every batch that it took, noted before the step. What a process took after the checkpoint from which its
successor went on is lost and taken again; the rest is committed. Nothing here trusts the loop under test: the
pages know its checkpoints from their files, and the examples from a column `row` that numbers them.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

Position = tuple[int, int]  # epoch, step in it
START: Position = (0, 0)
END: Position = (1 << 62, 0)


class Ledger:
    """`Job.on_batch` for one run; it travels to every worker, and each opens a page of its own.

    A step is held up for `step_seconds`, so that kills find the run at work.
    """

    def __init__(self, folder: Path, checkpoints: Path, step_seconds: float) -> None:
        self.folder, self.checkpoints, self.step_seconds = folder, checkpoints, step_seconds
        self.page: Path | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, epoch: int, step: int, worker: int, batch: Mapping[str, np.ndarray]) -> None:
        if self.page is None:
            begun = newest_checkpoint(self.checkpoints)
            self.page = self.folder / f"{time.time_ns()}-{worker}-{os.getpid()}.txt"
            self._write(*begun)
        digest = xxhash.xxh3_64_hexdigest(b"".join(column.tobytes() for column in batch.values()))
        batch["row"].tofile(self.folder / f"{digest}.rows")
        self._write(epoch, step, digest)
        time.sleep(self.step_seconds)

    def _write(self, *words: Any) -> None:
        assert self.page is not None
        with self.page.open("a") as file:  # one small write each: a kill comes before or after it
            file.write(" ".join(map(str, words)) + "\n")


def newest_checkpoint(folder: Path) -> Position:
    """Where the run stands by its files."""
    newest = max(folder.glob("step-*"), default=None)
    if newest is None:
        return START
    state = json.loads((newest / "state.json").read_text())
    return state["epoch"], state["step_in_epoch"]


@dataclass(frozen=True)
class Page:
    """What one process took, in order, from the checkpoint at `begun` on."""

    worker: int
    pid: int
    begun: Position
    taken: list[tuple[Position, str]]


def pages(folder: Path) -> list[Page]:
    """All pages of a ledger, oldest first."""
    found = []
    for path in sorted(folder.glob("*.txt")):
        _, worker, pid = map(int, path.stem.split("-"))
        lines = [line.split() for line in path.read_text().splitlines()]
        taken = [((int(epoch), int(step)), digest) for epoch, step, digest in lines[1:]]
        if lines:
            found.append(Page(worker, pid, (int(lines[0][0]), int(lines[0][1])), taken))
    return found


@dataclass(frozen=True)
class Account:
    """The committed batches of a run, by position and worker; and how many more were taken and lost."""

    committed: dict[tuple[Position, int], str]
    again: int

    @property
    def steps(self) -> int:
        return len({position for position, _ in self.committed})


def settle(all_pages: list[Page]) -> Account:
    """Parts what is committed from what was taken again.

    Raises:
        AssertionError: a process did not begin at its checkpoint, or left a step out; or a step that was
            taken again had another batch.
    """
    committed: dict[tuple[Position, int], str] = {}
    lost: list[tuple[tuple[Position, int], str]] = []
    for worker in {page.worker for page in all_pages}:
        mine = [page for page in all_pages if page.worker == worker and page.taken]
        ends = [*(page.begun for page in mine[1:]), END]
        assert mine[0].begun == START, f"worker {worker} began at {mine[0].begun}"
        for page, end in zip(mine, ends, strict=True):
            assert page.begun <= end, f"worker {worker} went back from {page.begun} to {end}"
            positions = [position for position, _ in page.taken]
            if end not in (END, page.begun):
                positions = [position for position in positions if position < end] + [end]
            assert positions[0] == page.begun, f"worker {worker} left {page.begun} and took {positions[0]}"
            for before, after in pairwise(positions):
                assert follows(before, after), f"worker {worker} took {after} after {before}"
            for position, digest in page.taken:
                if position < end:
                    committed[position, worker] = digest
                else:
                    lost.append(((position, worker), digest))
    for place, digest in lost:
        assert committed.get(place) == digest, f"{place} was taken again with another batch, or never again"
    return Account(committed, len(lost))


def follows(before: Position, after: Position) -> bool:
    """The next step of an epoch, or the first of the next; that none is missing at its end, the rows show."""
    return after in ((before[0], before[1] + 1), (before[0] + 1, 0))


def check_coverage(account: Account, folder: Path, rows: int, epochs: int, workers: int) -> None:
    """AssertionError unless the committed batches hold each of `rows` examples exactly once in each epoch."""
    takers = Counter(position for position, _ in account.committed)
    assert set(takers.values()) == {workers}, "a step was not taken by every worker"
    found = dict(rows_by_epoch(account, folder))
    assert sorted(found) == list(range(epochs)), f"the epochs are {sorted(found)}"
    for epoch, numbers in found.items():
        times = np.bincount(numbers, minlength=rows)
        assert times.size == rows, f"epoch {epoch} has rows that do not exist"
        wrong = np.flatnonzero(times != 1)
        assert not wrong.size, f"epoch {epoch}: {wrong.size} rows not taken once, row {wrong[:1]} for example"


def rows_by_epoch(account: Account, folder: Path) -> Iterator[tuple[int, np.ndarray]]:
    for epoch in {epoch for (epoch, _), _ in account.committed}:
        batches = [digest for ((of, _), _), digest in account.committed.items() if of == epoch]
        yield epoch, np.concatenate([np.fromfile(folder / f"{name}.rows", np.int32) for name in batches])
