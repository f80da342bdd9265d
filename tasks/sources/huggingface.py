"""The Hugging Face Hub: data sets as Arrow tables, models as folders, and its errors as one sentence each."""

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
TIMEOUT_SECONDS = 5  # per address; the Hub's libraries would wait for an unresponsive one forever
# by name, because the Hub's libraries have changed their HTTP library before
NETWORK_ERRORS = {
    "TransportError",
    "ConnectionError",
    "TimeoutError",
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",  # neither available from the Hub nor in its cache
}

Result = TypeVar("Result")


class NetworkError(ConnectionError):
    """A temporary failure of the network or the Hub, after which a retry may succeed."""


def stream_dataset(
    name: str, dataset: str, revision: str, config: str | None, split: str
) -> Iterator[pa.Table]:
    """Stream the rows of a data set, without storing it on disk."""
    if Path(dataset).exists():  # datasets would read the folder instead
        raise ValueError(
            f"{name}: the folder {Path(dataset).absolute()} has the same name: run in another folder"
        )
    with translate_errors(name):
        import datasets  # slow to import, and only needed here

        rows = datasets.load_dataset(dataset, config, split=split, streaming=True, revision=revision)
        yield from rows.with_format("arrow").iter(batch_size=BATCH_ROWS)


def resolve_commit(name: str, dataset: str, revision: str | None) -> str:
    """Return the current commit of a branch or tag (default: the main branch)."""
    with translate_errors(name):
        from huggingface_hub import HfApi  # slow to import, and only needed here

        sha = HfApi().dataset_info(dataset, revision=revision, timeout=TIMEOUT_SECONDS).sha
        assert sha is not None, "the hub names the commit of every data set"
        return sha


def download_model(name: str, model: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download the files of a model that match the patterns; return their folder in the Hub's cache.

    Without a network, the cached files are used.
    """
    with translate_errors(name, "model"):
        from huggingface_hub import HfApi, snapshot_download  # slow to import, and only needed here

        download = partial(snapshot_download, model, revision=revision, allow_patterns=list(patterns))
        try:
            HfApi().model_info(model, revision=revision, timeout=TIMEOUT_SECONDS)
        except Exception as error:
            if not isinstance(translate_error(name, "model", error), NetworkError):
                raise
            with suppress(FileNotFoundError):  # the cache lacks some files
                return Path(download(local_files_only=True))
            raise
        return Path(download())


def with_retries(attempt: Callable[[], Result]) -> Result:
    """Call `attempt`, with retries after a NetworkError, exponential backoff and jitter."""
    for delay in [NETWORK_BACKOFF_SECONDS * 2**n for n in range(NETWORK_RETRIES)]:
        try:
            return attempt()
        except NetworkError as error:
            console.warn(f"{error}; retrying")
            time.sleep(delay * (1 + NETWORK_JITTER * random.random()))
    return attempt()


@contextmanager
def translate_errors(name: str, kind: str = "data set") -> Iterator[None]:
    """Translate exceptions of the Hub's libraries into one sentence.

    Raises NetworkError if a retry may help, and otherwise FileNotFoundError, PermissionError or ValueError.
    """
    try:
        yield
    except Exception as error:
        raise translate_error(name, kind, error) from error


def translate_error(name: str, kind: str, error: Exception) -> Exception:
    """Return the exception to raise instead of `error`, by the types in its chain of causes."""
    kinds: set[str] = set()
    for cause in iterate_causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None and (status >= 500 or status == TOO_MANY_REQUESTS):
            return NetworkError(f"the Hugging Face Hub failed for {name} (status {status})")
        kinds |= {kind.__name__ for kind in type(cause).__mro__}
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "GatedRepoError" in kinds:
        return PermissionError(
            f"{name} requires a login: accept its terms on the Hub, then run `hf auth login`"
        )
    if "RevisionNotFoundError" in kinds:
        return FileNotFoundError(
            f"{name}: the {kind} has no such revision: use one of its branches, tags or commits"
        )
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return FileNotFoundError(
            f"{name}: the {kind} does not exist on the Hugging Face Hub, or is private: check the name"
        )
    if kinds & NETWORK_ERRORS:
        return NetworkError(f"the Hugging Face Hub can't be reached for {name} ({reason})")
    return ValueError(f"{name} can't be read from the Hugging Face Hub: {reason}")


def iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
