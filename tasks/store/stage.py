"""`@stage` turns a plain function into a cached, atomic and verified stage of a flow.

    @stage(version=1)
    def pairs(tokens: Artifact, config: PairsConfig, out: Path) -> Summary: ...

    pairs(tokens, config)            # in a flow: a Prefect task run, Completed or Cached
    pairs.function(tokens, config, out)   # in a test: the plain function

This is the only module that connects Prefect with the store. Prefect's result cache does not check that the
files of a result still exist, so only the store decides whether a stage is cached; Prefect's state shows the
decision: `Cached` on a hit, `Completed` after a build.
"""

import inspect
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, get_args, runtime_checkable

from prefect import State, Task
from prefect.logging import get_run_logger
from prefect.states import Completed
from prefect.tasks import exponential_backoff
from pydantic import BaseModel

from lexloom.tasks.display import console
from lexloom.tasks.store.artifacts import (
    FIRST_OF_STAGE,
    Artifact,
    InputEntry,
    Manifest,
    Store,
    Summary,
    Verification,
    canonical,
    digest_key,
    list_files,
    now,
)
from lexloom.tasks.store.explain import explain_change, new_reasons
from lexloom.tasks.store.file_access import printable
from lexloom.tasks.store.layout import DISPLACED
from lexloom.tasks.store.lineage import (
    Call,
    FileInput,
    Input,
    check_inputs,
    clear_stale_scratch,
    find_outdated_input,
    require_unchanged,
)
from lexloom.tasks.store.versions import package_versions

NETWORK_RETRIES = 4
NETWORK_BACKOFF_SECONDS = 2
NETWORK_JITTER = 0.5
MAX_RECORDED_FILES = 10_000  # of a source; a manifest does not record the names of more files


@dataclass(frozen=True)
class StageRecord:
    """The record of a stage in a run, for Prefect's UI and for `--json`; `parents` are "stage/key"."""

    stage: str
    key: str
    parents: list[str]
    cached: bool
    seconds: float
    summary: Summary
    why: list[str]


@dataclass
class Run:
    """State that the stages of one run share."""

    holds: ExitStack
    records: list[StageRecord] = field(default_factory=list)
    calls: dict[tuple[str, str], Call] = field(default_factory=dict)
    damaged: dict[tuple[str, str], str] = field(default_factory=dict)  # found by a later stage
    explained: dict[str, list[str]] = field(default_factory=dict)  # key -> why it was built

    def record(self, record: StageRecord) -> None:
        """Add a stage's record; it replaces an earlier record of the same artifact."""
        places = [(each.stage, each.key) for each in self.records]
        if (place := (record.stage, record.key)) in places:
            self.records[places.index(place)] = record
        else:
            self.records.append(record)


_run: ContextVar[Run | None] = ContextVar("run", default=None)


@contextmanager
def record_stages() -> Iterator[list[StageRecord]]:
    """Collect the records of all stages that run inside; their artifacts are safe from garbage collection."""
    with ExitStack() as holds:
        run = Run(holds)
        token = _run.set(run)
        try:
            yield run.records
        finally:
            _run.reset(token)


@runtime_checkable
class MeasuresMachine(Protocol):
    """A config with values that depend on the machine or the cluster."""

    def measured(self) -> BaseModel:
        """Return the config with those of the values that are part of the key."""


class Stage:
    """A stage, callable from a flow with its input artifacts and its config; returns the `Artifact`."""

    def __init__(
        self, function: Callable[..., Summary], version: int, retry_on: type[Exception] | None
    ) -> None:
        self.function = function
        self.name = function.__name__
        self.version = version
        parameters = list(inspect.signature(function).parameters)
        self.wants_scratch = "scratch" in parameters
        self.input_names = parameters[: parameters.index("config")]
        retries: dict[str, Any] = {}
        if retry_on is not None:
            retries = {
                "retries": NETWORK_RETRIES,
                "retry_delay_seconds": exponential_backoff(NETWORK_BACKOFF_SECONDS),
                "retry_jitter_factor": NETWORK_JITTER,
                "retry_condition_fn": lambda task, run, state: is_retriable(state, retry_on),
            }
        self.task: Task[..., Any] = Task(
            fn=self._run,
            name=self.name,
            description=inspect.getdoc(function),
            persist_result=True,
            result_serializer="json",
            refresh_cache=True,  # the record is written each time and never read in place of the store
            **retries,
        )

    def __call__(self, *inputs: Input, config: BaseModel) -> Artifact:
        if len(inputs) != len(self.input_names):
            raise TypeError(
                f"stage {self.name} takes {', '.join(self.input_names)}, got {len(inputs)} inputs"
            )
        if isinstance(config, MeasuresMachine):
            config = config.measured()
        record = f"{self.name}-{self.key(inputs, config)}.json"
        run = self.task.with_options(task_run_name=self.name, result_storage_key=record)
        state = cast("State[Artifact]", run(inputs, config, return_state=True))
        return state.result()

    def key(self, inputs: tuple[Input, ...], config: BaseModel) -> str:
        return digest_key(self.name, self.version, canonical(config), [entry.key for entry in inputs])

    def _run(self, inputs: tuple[Input, ...], config: BaseModel) -> Any:
        """The body of the Prefect task: return the cached artifact, or build it."""
        store, run = Store(), _run.get()
        key = self.key(inputs, config)
        started = time.perf_counter()
        why: list[str] = []
        if run is not None:
            run.calls[self.name, key] = Call(inputs, partial(self._rebuild, run, inputs, config))
        if store.is_occupied(self.name, key):
            found = run.damaged.pop((self.name, key), None) if run else None
            damage = (
                found
                or store.find_damage(self.name, key, read_verification_level())
                or find_outdated_input(store, self.name, key)
            )
            if damage is None:
                store.mark_used(self.name, key)
                hold(store, self.name, key)
                manifest = store.manifest(self.name, key)
                if manifest is not None:  # otherwise it was just removed, and is built
                    artifact = store.artifact(manifest)
                    self._report(artifact, inputs, True, time.perf_counter() - started, [], [])
                    return Completed(name="Cached", data=artifact)
            else:
                displaced = (
                    f" and moving the existing file or link to {DISPLACED}-*"
                    if store.is_blocked(self.name, key)
                    else ""
                )
                console.warn(f"{self.name}: {damage}; rebuilding it{displaced}")
                why = [f"rebuilt: {damage}"]
        for sentence in store.make_writable():
            console.warn(sentence)
        inputs = check_inputs(store, inputs, run.calls if run else {})
        artifact, why, reported = self._build(store, key, inputs, config, why)
        self._report(artifact, inputs, False, time.perf_counter() - started, why, reported)
        return artifact

    def _rebuild(self, run: Run, inputs: tuple[Input, ...], config: BaseModel, damage: str) -> None:
        """Rebuild a cached artifact that a later stage found to be damaged."""
        run.damaged[self.name, self.key(inputs, config)] = damage
        self(*inputs, config=config)

    def _build(
        self, store: Store, key: str, inputs: tuple[Input, ...], config: BaseModel, why: list[str]
    ) -> tuple[Artifact, list[str], list[str]]:
        """Build the artifact; return it, all reasons for it, and those that no earlier stage reported."""
        building = store.new_folder(self.name, key)
        started, created = time.perf_counter(), now()
        read = self._input_entries(store, inputs)
        try:
            with scratch_folder(store, self.name, key, read, self.wants_scratch) as extra:
                with require_unchanged(store, self.name, inputs):
                    summary = self.function(*inputs, config, building, **extra)
                manifest = Manifest(
                    stage=self.name,
                    version=self.version,
                    key=key,
                    created=created,
                    seconds=round(time.perf_counter() - started, 3),
                    why=why,
                    config=canonical(config),
                    inputs=read,
                    files=list_files(building),
                    summary=summary,
                    versions=package_versions(),
                )
                reported = why
                if not why:
                    changes = explain_change(manifest, list(store.manifests()))
                    manifest.why = [change.text for change in changes]
                    explained = run.explained if (run := _run.get()) else {}
                    reported = new_reasons(changes, explained)
                    explained[key] = manifest.why
                artifact = store.commit(building, manifest)
                hold(store, self.name, key)
                return artifact, manifest.why, reported
        except OSError as error:
            if is_disk_full(error):
                raise OSError(
                    ENOSPC,
                    f"no space is left for stage {self.name} (store {store.root}, temporary files"
                    f" {tempfile.gettempdir()}): free some space, run `lexloom store gc`, or choose"
                    " another folder with --store or LEXLOOM_STORE; no partial artifact is left",
                ) from error
            raise
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _input_entries(self, store: Store, inputs: tuple[Input, ...]) -> list[InputEntry]:
        return [
            make_input_entry(store, name, entry) for name, entry in zip(self.input_names, inputs, strict=True)
        ]

    def _report(
        self,
        artifact: Artifact,
        inputs: tuple[Input, ...],
        cached: bool,
        seconds: float,
        why: list[str],
        reported: list[str],
    ) -> None:
        parents = [
            f"{entry.stage if isinstance(entry, Artifact) else name}/{entry.key}"
            for name, entry in zip(self.input_names, inputs, strict=True)
        ]
        run = _run.get()
        if run is not None:
            run.record(StageRecord(self.name, artifact.key, parents, cached, seconds, artifact.summary, why))
        shown = [] if reported == [FIRST_OF_STAGE] else reported
        console.stage_line(self.name, artifact.summary, cached=cached, seconds=seconds, why=shown)
        try:
            logger: Any = get_run_logger()
        except RuntimeError:  # outside a Prefect run
            logger = logging.getLogger("lexloom")
        logger.info(
            "stage=%s key=%s cached=%s seconds=%.2f rows_in=%d rows=%d why=%s",
            *(self.name, artifact.key, cached, seconds, artifact.summary.rows_in, artifact.summary.rows, why),
        )


def stage(version: int, retry_on: type[Exception] | None = None) -> Callable[[Callable[..., Summary]], Stage]:
    """Decorate `function(*inputs, config, out[, scratch]) -> Summary` as a `Stage`.

    `out` is an empty folder; the files written there become the artifact. A function with a parameter
    `scratch` gets a folder that is kept after a failed attempt.

    Args:
        version: raised by hand when the function's results change.
        retry_on: the exception after which the stage is retried, with backoff and jitter (network errors).
    """
    return lambda function: Stage(function, version, retry_on)


@contextmanager
def scratch_folder(
    store: Store, name: str, key: str, read: list[InputEntry], wanted: bool
) -> Iterator[dict[str, Path]]:
    """Yield the locked scratch folder as a keyword argument; a concurrent run gets a folder of its own."""
    if not wanted:
        yield {}
        return
    with store.lock(f"{name}-{key}", wait=False) as alone:
        folder = store.scratch(name, key) if alone else store.new_folder(f"{name}-scratch", key)
        if clear_stale_scratch(folder, read):
            console.note(name, "restarting: the inputs have changed since the progress was saved")
        yield {"scratch": folder}
        shutil.rmtree(folder, ignore_errors=True)


def hold(store: Store, name: str, key: str) -> None:
    """Hold an artifact until the run ends; if it was just removed, a later stage finds it missing."""
    run = _run.get()
    if run is not None:
        with suppress(OSError):
            run.holds.enter_context(store.hold(name, key))


def read_verification_level() -> Verification:
    """Read LEXLOOM_VERIFY, the verification of cached artifacts; "size" by default."""
    level = os.environ.get("LEXLOOM_VERIFY", "size")
    if level not in get_args(Verification):
        raise ValueError(f"LEXLOOM_VERIFY is {level!r}: use 'size' or 'full'")
    return level  # type: ignore[return-value]


def make_input_entry(store: Store, name: str, entry: Any) -> InputEntry:
    if isinstance(entry, Artifact):
        manifest = store.manifest(entry.stage, entry.key)
        content = manifest.content if manifest else ""
        return InputEntry(name=name, stage=entry.stage, key=entry.key, content=content)
    digests = entry.file_digests() if isinstance(entry, FileInput) else {}
    files = {printable(file): digest for file, digest in digests.items()}  # JSON must be valid UTF-8
    return InputEntry(
        name=name,
        stage="",
        key=entry.key,
        description=entry.model_dump(mode="json"),
        files=files if len(files) <= MAX_RECORDED_FILES else {},
    )


def is_retriable(state: Any, kind: type[Exception]) -> bool:
    try:
        state.result()
    except kind as error:
        console.warn(f"{error}; retrying")
        return True
    except Exception:
        return False
    return False


def is_disk_full(error: OSError) -> bool:
    return error.errno in (ENOSPC, EDQUOT) or "No space left on device" in str(error)
