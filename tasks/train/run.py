"""Shared by the training stages: their parameters, the execution of a training job, and its metrics.

Each model has its own stage (word2vec.py and others), which connects the model to the training loop and
writes the model folder (model_folder.py).
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, Tag, model_validator
from torch import Tensor

from lexloom.models.precision import Precision
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.display.progress import show_progress
from lexloom.tasks.store.activity import CHECKPOINTS
from lexloom.tasks.store.artifacts import Artifact, RunOnly, canonical, digest_key
from lexloom.tasks.store.parallel import import_in_thread
from lexloom.tasks.store.stage import Input
from lexloom.tasks.train.resources import (
    AUTO,
    MAX_THREADS,
    REQUESTS,
    Auto,
    Choice,
    Device,
    NumberOrAuto,
    Request,
    Resources,
    Runner,
    Threads,
    choose_resources,
)
from lexloom.training.checkpoint_files import Checkpoint, Checkpoints
from lexloom.training.interrupt import run_interruptibly
from lexloom.training.job import Job, TrainState
from lexloom.training.loop import train
from lexloom.training.progress import PROGRESS, Progress
from lexloom.training.ray.progress_file import write_progress
from lexloom.training.stopping import Stopping
from lexloom.training.sync.config import SyncConfig
from lexloom.training.trainable import Trainable

MAX_WORKERS = 1024
MAX_LANES = 64  # of gradient-based training, and so its maximum number of workers
CHECKPOINT_FORMAT = 4  # raised by hand when the content of a checkpoint changes
TRAIN, VALIDATION = "train-*.parquet", "validation-*.parquet"  # training examples, and held-out ones
SHUFFLE_BUFFER_BYTES = 1 << 27  # over all workers: 32,000 contexts of 1,024 tokens, or 8 million windows
ACCOUNTS = ("data", "compute", "sync", "evaluation", "checkpoint")


Epochs = Annotated[int, Field(ge=1, description="Number of passes over the training examples.")]
BatchSize = Annotated[int, Field(ge=1, description="Global batch size: examples per step, over all workers.")]
# averaged replicas depend on their number; averaged gradients only in the order of sums and dropout
unless_replicas_differ = RunOnly(when=lambda config: getattr(config, "sync", "all_reduce") == "all_reduce")
SyncPeriod = Annotated[
    int, Field(ge=1, description="Number of steps between synchronizations (average and diloco).")
]
GradientSync = Annotated[
    Literal["all_reduce", "average", "diloco"],
    Field(
        description="How workers synchronize: 'all_reduce' averages gradients in every step; 'average'"
        " averages parameters every sync_period steps; 'diloco' applies an outer optimizer to their mean"
        " update."
    ),
]
MatrixPrecision = Annotated[
    Precision,
    Field(
        description="Precision of matrix multiplications; 'auto' uses bfloat16 if a measurement shows that it"
        " is faster. A resumed run keeps the choice."
    ),
]


class TrainConfig(BaseModel):
    """Training parameters of all models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Epochs = 5
    workers: Annotated[
        Annotated[int, Tag("number"), Field(ge=1, le=MAX_LANES)] | Auto,
        NumberOrAuto,
        Choice(),
        unless_replicas_differ,
    ] = Field(
        AUTO,
        description="Number of data-parallel workers, each with a replica of the model. 'auto' is one on this"
        " machine (one per GPU if it has several), and as many as fit on Ray.",
    )
    min_workers: Annotated[int | None, RunOnly()] = Field(
        None,
        ge=1,
        le=MAX_WORKERS,
        description="Minimum number of workers; training uses fewer workers while the cluster has no room for"
        " all. If not given, a given number of workers is required, and one of 'auto'.",
    )
    threads: Annotated[Threads, RunOnly()] = Field(
        AUTO,
        description="CPU threads per worker; 'auto' divides the CPUs among the workers. On the result, the"
        " number only has the effect of rounding. No effect on a GPU.",
    )
    device: Annotated[Device, RunOnly()] = Field(
        AUTO,
        description="Training device; with 'cuda', each worker uses one GPU. 'auto' uses the GPUs, if there"
        " are any.",
    )
    max_steps: int | None = Field(None, ge=1, description="Maximum number of steps.")
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="Maximum training time in seconds. The learning rate schedule then follows the elapsed"
        " time, so the result depends on the speed of the machine.",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Early stopping: stop after this many consecutive evaluations without an improvement of"
        " the validation loss.",
    )
    min_delta: float = Field(
        0.0, ge=0, description="Minimum decrease of the validation loss that counts as an improvement."
    )
    evaluate_every: int | None = Field(
        None,
        ge=1,
        description="Number of steps between evaluations on held-out examples; if not given, one evaluation"
        " per epoch.",
    )
    seed: int = Field(
        1, ge=0, description="Random seed for initialization, the order of examples and all other randomness."
    )
    runner: Annotated[Runner, RunOnly()] = Field(
        AUTO,
        description="'ray' trains on Ray Train workers, 'local' one worker in this process, without Ray."
        " 'auto' uses Ray for several workers and on a cluster.",
    )
    ray_address: Annotated[str, RunOnly()] = Field(
        "",
        description="Address of the Ray cluster for training and text processing; 'auto' finds a running one."
        " If not given, RAY_ADDRESS is used, or else this machine is used.",
    )
    checkpoint_every: Annotated[int | None, RunOnly()] = Field(
        None, ge=1, description="Number of steps between checkpoints, in addition to the time-based ones."
    )
    checkpoint_seconds: Annotated[float, RunOnly()] = Field(
        60.0,
        gt=0,
        description="Seconds between checkpoints; longer if checkpoints take over 2% of the training time.",
    )

    @model_validator(mode="after")
    def workers_fit(self) -> Self:
        if self.min_workers is not None and isinstance(self.workers, int) and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} exceeds the {counted(self.workers, 'workers')}: lower it"
            )
        return self

    def resources(
        self, most_workers: int = MAX_LANES, most_threads: Callable[[int], int] = lambda workers: MAX_THREADS
    ) -> Resources:
        """Measure this machine or the cluster, and choose what the run uses (`choose_resources`)."""
        return choose_resources(cast(Request, self), most_workers, most_threads=most_threads)

    def measured(self) -> Self:
        """Return the config with the measured values that are part of the key."""
        of_the_key = canonical(self).keys()
        names = [name for name in REQUESTS if name in of_the_key and getattr(self, name) == AUTO]
        if not names:
            return self
        chosen = self.resources()
        update = {name: getattr(chosen, name) for name in names}
        if "workers" in names and self.min_workers is None:
            update["min_workers"] = chosen.min_workers
        return self.model_copy(update=update)

    @property
    def cluster(self) -> str:
        """The address of the Ray cluster: ray_address, or RAY_ADDRESS; empty for this machine."""
        return (self.ray_address or os.environ.get("RAY_ADDRESS", "")) if self.runner != "local" else ""

    def stopping(self) -> Stopping:
        return Stopping(
            max_epochs=self.epochs,
            max_steps=self.max_steps,
            max_seconds=self.max_seconds,
            patience=self.patience,
            min_delta=self.min_delta,
        )


class GradientTrainConfig(TrainConfig):
    """Parameters of gradient-based training, which supports all_reduce, average and diloco."""

    batch_size: BatchSize = 256  # replaced by every model's own

    sync: GradientSync = "all_reduce"
    sync_period: SyncPeriod = 20
    warm_up_steps: int = Field(0, ge=0, description="Steps of all_reduce before average or diloco begins.")
    optimizer_state: Literal["average", "keep"] = Field(
        "average",
        description="Optimizer state when parameters are averaged (average): 'average' averages it too,"
        " 'keep' keeps each worker's own.",
    )
    outer_learning_rate: float = Field(
        0.7, gt=0, le=10, description="Learning rate of diloco's outer optimizer."
    )
    outer_momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of diloco's outer optimizer.")
    comm_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Data type of the updates that diloco exchanges."
    )

    @model_validator(mode="after")
    def workers_fit_the_batch(self) -> Self:
        if isinstance(self.workers, int) and self.workers > self.lanes:
            raise ValueError(
                f"{self.workers} workers need a batch_size of at least {round_up_to_power(self.workers)}, not"
                f" {self.batch_size}: raise it, or use at most {counted(self.lanes, 'workers')}"
            )
        return self

    @model_validator(mode="after")
    def strategy_fits(self) -> Self:
        self.synchronisation()
        return self

    def resources(
        self, most_workers: int = MAX_LANES, most_threads: Callable[[int], int] = lambda workers: MAX_THREADS
    ) -> Resources:
        return super().resources(min(self.lanes, most_workers), most_threads)

    @property
    def lanes(self) -> int:
        """The number of lanes of the data order: the largest power of two up to `MAX_LANES` and batch_size.

        A power of two gives usual numbers of workers the same number of lanes each. With a lane per example
        or fewer, every worker has examples of every full batch.
        """
        return min(MAX_LANES, 1 << self.batch_size.bit_length() - 1)

    def synchronisation(self) -> SyncConfig:
        return SyncConfig(
            self.sync,
            period=1 if self.sync == "all_reduce" else self.sync_period,
            warm_up_steps=self.warm_up_steps,
            optimizer_state=self.optimizer_state,
            outer_learning_rate=self.outer_learning_rate,
            outer_momentum=self.outer_momentum,
            comm_dtype=self.comm_dtype,
        )


def round_up_to_power(number: int) -> int:
    """Return the smallest power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def plan_job(
    config: TrainConfig,
    resources: Resources,
    make_trainable: Callable[[], Trainable],
    examples: Artifact,
    columns: tuple[str, ...],
    others: Sequence[Input],
    scratch: Path,
    sync: SyncConfig,
    sample: Callable[[Any], str] | None = None,
    **own: Any,
) -> Job:
    """Return the training job of a config.

    Its checkpoints, in `scratch`, are valid for this config and these inputs only.

    `others` are the stage's other inputs. `sample` generates a sample from a trainable at each evaluation.
    `own` overrides fields of the job.
    """
    keys = [examples.key, *(other.key for other in others)]
    fields: dict[str, Any] = {
        "make_trainable": make_trainable,
        "files": tuple(examples.files(TRAIN)),
        "columns": columns,
        "checkpoints": scratch / CHECKPOINTS,
        "fingerprint": digest_key(type(config).__name__, CHECKPOINT_FORMAT, canonical(config), keys),
        "stopping": config.stopping(),
        "sync": sync,
        "checkpoint_every": config.checkpoint_every,
        "checkpoint_seconds": config.checkpoint_seconds,
        "seed": config.seed,
        "device": resources.device,
        "validation": tuple(examples.files(VALIDATION)),
        "evaluate_every": config.evaluate_every,
        "sample": sample,
    }
    if isinstance(config, GradientTrainConfig):
        fields |= {
            "batch_size": config.batch_size,
            "lanes": config.lanes,
            "shuffle_buffer_bytes": SHUFFLE_BUFFER_BYTES,  # mixes examples of many texts in each batch
        }
    return Job(**(fields | own))


def run_job(job: Job, resources: Resources, unit: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Run a job; return its metrics and the tensors of the trainable.

    If examples are held out, the tensors are those of the step with the lowest validation loss; otherwise of
    the last step. An interrupted run (SIGINT, SIGTERM, cancellation) prints what the next run resumes from.
    """
    note = partial(console.note, "training")
    checkpoints = Checkpoints(job.checkpoints, job.fingerprint)
    found = checkpoints.load()
    if found is not None:
        note(f"resumes from the checkpoint of step {found.state['step']:,}")
    note(resources.describe())
    starting = "" if resources.runner == "local" else f"starting {counted(resources.workers, 'Ray workers')}"
    try:
        with show_progress(unit, starting) as on_progress:
            if resources.runner == "local":
                train_here(job, on_progress, note)
            else:
                import_in_thread("lexloom.training.ray.trainer").train_on_ray(
                    job,
                    workers=(resources.min_workers, resources.workers),
                    cpus=resources.cpus,
                    address=resources.cluster or None,
                    verbose=bool(os.environ.get("LEXLOOM_VERBOSE")),
                    on_progress=on_progress,
                    on_note=note,
                )
    except Exception:
        raise
    except BaseException:
        note(f"stopped; {checkpoints.describe_resume()}")
        raise
    last, best = load_results(checkpoints)
    examples = job.open_stream(job, 0, 1, False).examples
    return compute_metrics(TrainState(**last.state), examples), best.tensors


def train_here(job: Job, on_progress: Callable[[Progress], None], note: Callable[[str], None]) -> None:
    """Train with one worker in this process; the first SIGINT or SIGTERM stops it after a checkpoint."""

    def report_progress(point: Progress) -> None:
        write_progress(job.checkpoints.parent / PROGRESS, point)  # `lexloom status` reads it
        on_progress(point)

    def on_signal() -> None:
        note("stopping after this step; interrupt again to stop without a checkpoint")

    run_interruptibly(
        lambda interrupted: train(job, on_progress=report_progress, interrupted=interrupted), on_signal
    )


def load_results(checkpoints: Checkpoints) -> tuple[Checkpoint, Checkpoint]:
    """Return the last checkpoint of a finished run, and the best one."""
    last = checkpoints.load()
    if last is None:
        raise RuntimeError(f"training ended without a checkpoint in {checkpoints.folder}")
    step = TrainState(**last.state).best_step
    best = last if step is None or step == last.state["step"] else checkpoints.load_step(step)
    if best is None:
        raise OSError(
            f"the checkpoint of the best model (step {step:,} in {checkpoints.folder}) is damaged: delete"
            " that folder and train again"
        )
    return last, best


def compute_metrics(run: TrainState, examples: int) -> dict[str, Any]:
    """Return the content of metrics.json: losses, progress, the stop reason, and the time by activity.

    `examples` are those of an epoch. If training ended within one, `epochs` has two digits.
    """
    last_epoch = [point for point in run.history if point["epoch"] == run.history[-1]["epoch"]]
    metrics: dict[str, Any] = {
        "loss": mean_loss(last_epoch),
        "epochs": float(f"{run.examples / examples:.2g}") if run.step_in_epoch else run.epoch,
        "steps": run.step,
        "examples": run.examples,
        "examples_per_second": round(run.examples / run.seconds),
        "workers": run.history[-1]["workers"],
        "stop_reason": run.stop_reason,
        **(
            {"precision": "bfloat16" if run.hardware_choices["bfloat16"] else "float32"}
            if run.hardware_choices
            else {}
        ),
        "seconds": round(run.seconds, 3),
        **{f"{account}_seconds": round(getattr(run, f"{account}_seconds"), 3) for account in ACCOUNTS},
        "sync_bytes": run.sync_bytes,
    }
    if run.scores:
        best = min(run.scores, key=lambda score: score["loss"])
        metrics |= {"validation_loss": best["loss"], "best_step": best["step"], "scores": run.scores}
    return metrics | {"history": run.history}


def mean_loss(history: list[dict[str, Any]]) -> float:
    """Return the mean loss over the examples of some points."""
    examples = sum(point["loss_examples"] for point in history)
    return sum(point["loss"] * point["loss_examples"] for point in history) / examples
