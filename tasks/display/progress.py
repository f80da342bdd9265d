"""Progress of training: a bar in the terminal; a bar and a training curve in Prefect's UI."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from time import monotonic
from typing import cast
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.context import TaskRunContext

from lexloom.tasks.display import console
from lexloom.tasks.display.curves import draw_curve, image_url
from lexloom.tasks.display.formatting import format_losses, format_progress, short
from lexloom.training.progress import Progress

SAMPLE_WIDTH = 80  # maximum characters of a sample in the terminal
BAR_SECONDS = 2.0  # between updates of the bar in Prefect's UI
CURVE_SECONDS = 30.0  # between updates of the curve
CURVE_POINTS = 200

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
                "  ".join(
                    [
                        f"{short(point.examples / point.seconds)} {unit}/s",
                        *format_losses(point.loss, point.validation_loss),
                        f"learning rate {point.learning_rate:.2g}",
                    ]
                ),
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
                self._draw()

    def _fill(self, percent: float, description: str) -> None:
        if self.bar is None:
            self.bar = cast(UUID, create_progress_artifact(percent, key="training", description=description))
        else:
            update_progress_artifact(self.bar, percent, description=description)

    def _draw(self) -> None:
        points = mean_losses(self.points)
        chart = draw_curve(points, "loss (smoothed)", self.unit, smooth=True, hover=False)
        if chart is None:
            return
        # not an image artifact, because Prefect's UI prints the whole URL below the image
        text = f"![training loss]({image_url(chart)})\n\nThe training loss. The faint line is not smoothed.\n"
        if self.curve is None:
            self.curve = cast(UUID, create_markdown_artifact(text, key="training-curve"))
        else:
            with get_client(sync_client=True) as client:
                client.update_artifact(self.curve, ArtifactUpdate(data=text))


@contextmanager
def ignore_server_errors() -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.warning("could not update Prefect's UI; training continues", exc_info=True)


def mean_losses(points: list[Progress]) -> list[tuple[float, float]]:
    """Reduce the points to at most CURVE_POINTS: (examples, mean loss since the previous point)."""
    count = min(len(points), CURVE_POINTS)
    ends = [round(number * len(points) / count) for number in range(count + 1)]
    means: list[tuple[float, float]] = []
    for start, end in pairwise(ends):
        part = points[start:end]
        loss = sum(each.loss * each.loss_examples for each in part) / sum(each.loss_examples for each in part)
        means.append((points[end - 1].examples, loss))
    return means
