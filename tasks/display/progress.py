"""Progress of training: a bar in the terminal; a bar and a training curve in Prefect's UI."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from time import monotonic
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.context import TaskRunContext

from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import format_progress, short
from lexloom.training.progress import Progress

SAMPLE_WIDTH = 80  # maximum characters of a sample in the terminal
BAR_SECONDS = 2.0  # between updates of the bar in Prefect's UI
CURVE_SECONDS = 30.0  # between updates of the curve
CURVE_POINTS = 25

logger = logging.getLogger("lexloom.live")


@contextmanager
def show_progress(unit: str, first: str) -> Iterator[Callable[[Progress], None]]:
    """Yield a callback that shows a `Progress` in the terminal and, in a Prefect run, in Prefect's UI."""
    prefect = PrefectProgress(unit) if TaskRunContext.get() is not None else None
    last_sample = ""
    with console.bar("training", first=first) as bar:

        def on_progress(point: Progress) -> None:
            nonlocal last_sample
            if point.sample != last_sample:
                last_sample = point.sample
                shown = console.clipped(last_sample, SAMPLE_WIDTH) or "(no text)"
                console.note("training", f"step {point.step:,} sample: {shown}")
            bar.update(
                point.share,
                f"{short(point.examples / point.seconds)} {unit}/s  loss {point.loss:.3f}"
                f"  learning rate {point.learning_rate:.2g}",
                total=1.0,
            )
            if prefect is not None:
                prefect.show(point)

        try:
            yield on_progress
        finally:
            if prefect is not None:
                prefect.finish()


class PrefectProgress:
    """Two Prefect artifacts of a run: a progress bar with the latest figures, and the training curve.

    They are created once and updated in place, the curve less often. If Prefect's server does not respond,
    training continues and the log has a warning.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.points: list[Progress] = []
        self.next_bar = self.next_curve = 0.0
        self.bar: UUID | None = None
        self.curve: UUID | None = None
        with ignore_server_errors():
            self._fill(0.0, "not started")

    def show(self, point: Progress) -> None:
        while self.points and self.points[-1].examples > point.examples - point.loss_examples:
            self.points.pop()  # the new point includes its examples
        self.points.append(point)
        self._update(monotonic())

    def finish(self) -> None:
        """Show the last point, which `show` may have skipped because the update before was too recent."""
        if self.points:
            self._update(float("inf"))

    def _update(self, now: float) -> None:
        point = self.points[-1]
        with ignore_server_errors():
            if now >= self.next_bar:
                self.next_bar = now + BAR_SECONDS
                self._fill(100 * point.share, format_progress(asdict(point), self.unit))
            if now >= self.next_curve:
                self.next_curve = now + CURVE_SECONDS
                self._draw(curve_rows(self.points, self.unit))

    def _fill(self, percent: float, description: str) -> None:
        if self.bar is None:
            self.bar = cast(UUID, create_progress_artifact(percent, key="training", description=description))
        else:
            update_progress_artifact(self.bar, percent, description=description)

    def _draw(self, rows: list[dict[str, Any]]) -> None:
        if self.curve is None:
            about = f"The loss is the mean over the {self.unit} since the previous row."
            self.curve = cast(UUID, create_table_artifact(rows, key="training-curve", description=about))
        else:
            with get_client(sync_client=True) as client:
                client.update_artifact(self.curve, ArtifactUpdate(data=json.dumps(rows)))


@contextmanager
def ignore_server_errors() -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.warning("could not update Prefect's UI; training continues", exc_info=True)


def curve_rows(points: list[Progress], unit: str) -> list[dict[str, Any]]:
    """Reduce the points to at most CURVE_POINTS rows, evenly spaced, with the mean loss between them."""
    count = min(len(points), CURVE_POINTS)
    ends = [round(number * len(points) / count) for number in range(count + 1)]
    rows = []
    for start, end in pairwise(ends):
        part, point = points[start:end], points[end - 1]
        loss = sum(each.loss * each.loss_examples for each in part) / sum(each.loss_examples for each in part)
        rows.append(
            {
                "step": point.step,
                "epoch": point.epoch + 1,
                unit: point.examples,
                "loss": round(loss, 4),
                "learning rate": float(f"{point.learning_rate:.3g}"),
                "seconds": round(point.seconds, 1),
            }
        )
    return rows
