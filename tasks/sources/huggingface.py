"""The Hugging Face hub: data sets as Arrow tables, models as folders, its errors as one sentence each."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from lexloom.tasks.display import console
from lexloom.tasks.store.stage import NETWORK_BACKOFF_SECONDS, NETWORK_JITTER, NETWORK_RETRIES

BATCH_ROWS = 100
TOO_MANY_REQUESTS = 429
ANSWER_SECONDS = 5  # from one address; the hub's libraries would wait for a silent one without end
# by name, because the hub's libraries have changed their HTTP library before
NETWORK_TROUBLE = {
    "TransportError",
    "ConnectionError",
    "TimeoutError",
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",  # not to be had from the hub just now, nor in its cache
}

Result = TypeVar("Result")


class NetworkError(ConnectionError):
    """The network or the hub failed in a way that may pass: worth another try."""


def stream(name: str, dataset: str, revision: str, config: str | None, split: str) -> Iterator[pa.Table]:
    """The rows of a data set as the hub has them, streamed: nothing is kept on disk."""
    if Path(dataset).exists():  # datasets would read it in place of the hub's
        raise ValueError(f"{name}: the folder {Path(dataset).absolute()} hides it: run in another folder")
    with hub_errors(name):
        import datasets  # slow to import, and only needed here

        rows = datasets.load_dataset(dataset, config, split=split, streaming=True, revision=revision)
        yield from rows.with_format("arrow").iter(batch_size=BATCH_ROWS)


def commit_of(name: str, dataset: str, revision: str | None) -> str:
    """The commit that a branch or tag stands for just now."""
    with hub_errors(name):
        from huggingface_hub import HfApi  # slow to import, and only needed here

        sha = HfApi().dataset_info(dataset, revision=revision, timeout=ANSWER_SECONDS).sha
        assert sha is not None, "the hub names the commit of every data set"
        return sha


def snapshot(name: str, model: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """A model's files that match the patterns, in the hub's cache; without a network, those that it has."""
    with hub_errors(name, "model"):
        from huggingface_hub import HfApi, snapshot_download  # slow to import, and only needed here

        download = partial(snapshot_download, model, revision=revision, allow_patterns=list(patterns))
        try:
            HfApi().model_info(model, revision=revision, timeout=ANSWER_SECONDS)
        except Exception as error:
            if not isinstance(in_our_words(name, "model", error), NetworkError):
                raise
            with suppress(FileNotFoundError):  # what the library says of files that its cache lacks
                return Path(download(local_files_only=True))
            raise
        return Path(download())


def with_retries(attempt: Callable[[], Result]) -> Result:
    """Calls `attempt` until it works; waits longer, and never quite as long, after each NetworkError."""
    for delay in [NETWORK_BACKOFF_SECONDS * 2**n for n in range(NETWORK_RETRIES)]:
        try:
            return attempt()
        except NetworkError as error:
            console.warn(f"{error}; trying again")
            time.sleep(delay * (1 + NETWORK_JITTER * random.random()))
    return attempt()


@contextmanager
def hub_errors(name: str, kind: str = "data set") -> Iterator[None]:
    """What the hub's libraries raise, as one sentence.

    NetworkError where another try may help; FileNotFoundError, PermissionError or ValueError where it won't.
    """
    try:
        yield
    except Exception as error:
        raise in_our_words(name, kind, error) from error


def in_our_words(name: str, kind: str, error: Exception) -> Exception:
    """The exception to raise in place of one of the hub's, by all that led to it."""
    kinds: set[str] = set()
    for cause in causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None and (status >= 500 or status == TOO_MANY_REQUESTS):
            return NetworkError(f"the hub failed for {name} (status {status})")
        kinds |= {kind.__name__ for kind in type(cause).__mro__}
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "GatedRepoError" in kinds:
        return PermissionError(f"{name} asks for a login: accept its terms on the hub, then `hf auth login`")
    if "RevisionNotFoundError" in kinds:
        return FileNotFoundError(
            f"{name}: the {kind} has no such revision: name a branch, tag or commit of it"
        )
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return FileNotFoundError(f"{name}: no such {kind} on the hub, or a private one: check the name")
    if kinds & NETWORK_TROUBLE:
        return NetworkError(f"the hub can't be reached for {name} ({said})")
    return ValueError(f"{name} can't be read from the hub: {said}")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
