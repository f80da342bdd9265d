"""Sends progress from worker 0 to the driver through a small shared file."""

import contextvars
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from lexloom.training.progress import Progress

POLL_SECONDS = 0.5

logger = logging.getLogger("lexloom.progress_file")


def write_progress(path: Path, record: Progress) -> None:
    """Replace the file with a new record."""
    writing = path.with_suffix(".writing")
    writing.write_text(json.dumps(asdict(record)))
    writing.replace(path)


@contextmanager
def relay_progress(path: Path, on_progress: Callable[[Progress], None] | None) -> Iterator[None]:
    """Pass each new record in `path` to `on_progress`, in a thread; delete an older run's record first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    finished = threading.Event()

    def follow() -> None:
        last_text, ended = "", False
        while not ended:
            ended = finished.wait(POLL_SECONDS)
            text = path.read_text() if path.exists() else ""
            if text and text != last_text and on_progress:
                last_text = text
                try:
                    on_progress(Progress(**json.loads(text)))
                except Exception:
                    logger.warning("the progress could not be displayed; training continues", exc_info=True)

    in_this_context = (
        contextvars.copy_context().run
    )  # so that `on_progress` belongs to the caller's Prefect run
    thread = threading.Thread(target=in_this_context, args=(follow,), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
