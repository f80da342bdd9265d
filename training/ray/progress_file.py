"""Progress on its way from worker 0 to the driver: through a small file that both can see."""

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

logger = logging.getLogger("lexloom.relay")


def write_progress(path: Path, point: Progress) -> None:
    """Puts a point in the place of the one before."""
    writing = path.with_suffix(".writing")
    writing.write_text(json.dumps(asdict(point)))
    writing.replace(path)


@contextmanager
def relayed(path: Path, on_progress: Callable[[Progress], None] | None) -> Iterator[None]:
    """Hands each new point in `path` to `on_progress`, from a thread of its own; forgets an older run's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    finished = threading.Event()

    def follow() -> None:
        last, ended = "", False
        while not ended:
            ended = finished.wait(POLL_SECONDS)
            text = path.read_text() if path.exists() else ""
            if text and text != last and on_progress:
                last = text
                try:
                    on_progress(Progress(**json.loads(text)))
                except Exception:
                    logger.warning("the progress could not be shown; training goes on", exc_info=True)

    in_this_context = contextvars.copy_context().run  # so that `on_progress` knows the caller's run
    thread = threading.Thread(target=in_this_context, args=(follow,), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
