"""Terminal output of a run: one line per stage, and progress bars for longer work."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Column
from rich.text import Text

from lexloom.tasks.display.formatting import counted

if TYPE_CHECKING:
    from lexloom.tasks.store.artifacts import Summary

BAR_AFTER_SECONDS = 2.0
NAME_WIDTH = 18
SHOWN_REASONS = 3  # `lexloom store explain` lists all

stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def stage_line(name: str, summary: "Summary", *, cached: bool, seconds: float, why: list[str]) -> None:
    """`pairs   3.1 s  1,905,634 words → 8,012,345 pairs · 612,000 dropped by subsampling` on stderr."""
    line = Text()
    line.append(f"{name:<{NAME_WIDTH}} ", style="bold")
    line.append("cached   " if cached else f"{seconds:6.1f} s ", style="green" if cached else "cyan")
    line.append(f" {describe(summary)}")
    stderr.print(line)
    if why and not cached:
        more = f"; and {len(why) - SHOWN_REASONS} more" if len(why) > SHOWN_REASONS else ""
        reasons = "; ".join(why[:SHOWN_REASONS])
        stderr.print(Text(f"{' ' * (NAME_WIDTH + 11)}because {reasons}{more}", style="dim"))


def describe(summary: "Summary") -> str:
    """Format the rows in and out, and the dropped rows by reason."""
    if summary.unit_in == summary.unit and summary.rows_in == summary.rows:
        phrase = counted(summary.rows, summary.unit)
    else:
        phrase = f"{counted(summary.rows_in, summary.unit_in)} → {counted(summary.rows, summary.unit)}"
    reasons = [counted(count, reason) for reason, count in (summary.dropped | summary.notes).items() if count]
    return " · ".join([phrase, *reasons])


def note(name: str, message: str) -> None:
    """Print a message about a running stage."""
    stderr.print(Text(f"{name:<{NAME_WIDTH}} ", style="bold") + Text(f"{'':10}{message}", style="dim"))


def clipped(text: str, width: int) -> str:
    """Join text into one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def warn(message: str) -> None:
    stderr.print(Text("warning: ", style="yellow") + Text(message))


_starting: Status | None = None


def show_starting() -> None:
    """Show a spinner until `stop_starting`, in a terminal."""
    global _starting
    if stderr.is_terminal and _starting is None:
        _starting = stderr.status(Text("starting", style="dim"))
        _starting.start()


def stop_starting() -> None:
    global _starting
    if _starting is not None:
        _starting.stop()
        _starting = None


class Bar:
    """A progress bar that appears after two seconds, or at once if `first` is set."""

    def __init__(self, progress: Progress, total: float | None, first: str) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total, figures=first)
        self._started = time.monotonic()
        self._shown = bool(first)
        if self._shown:
            progress.start()

    def update(self, completed: float, figures: str = "", total: float | None = None) -> None:
        """Show that `completed` of the total is done; `figures` is the text at the end of the bar."""
        changes: dict[str, float] = {} if total is None else {"total": total}
        self._progress.update(self._task, completed=completed, figures=figures, **changes)  # type: ignore[arg-type]
        if not self._shown and time.monotonic() - self._started > BAR_AFTER_SECONDS:
            self._progress.start()
            self._shown = True


@contextmanager
def bar(title: str, total: float | None = None, first: str = "") -> Iterator[Bar]:
    """Yield a bar for work of `total` units; it disappears at the end, when the stage's line is printed."""
    progress = Progress(
        TextColumn(f"{title:<{NAME_WIDTH}}"),
        BarColumn(bar_width=16),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ignore")),
        TimeRemainingColumn(compact=True),
        console=stderr,
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    try:
        yield Bar(progress, total, first)
    finally:
        progress.stop()
