"""What the training stages share: their options, the run of a job with its progress, and its metrics.

Each model has a stage of its own (train_word2vec.py and so on) that joins its mathematics with the training
loop and writes the model folder.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.display.progress import shown_progress
from lexloom.tasks.store.activity import CHECKPOINTS
from lexloom.tasks.store.artifacts import Artifact, RunOnly, canonical, digest_key
from lexloom.tasks.store.parallel import module
from lexloom.tasks.store.stage import Input
from lexloom.training.checkpoint import Checkpoint, Checkpoints
from lexloom.training.interrupt import run_interruptibly
from lexloom.training.job import Job, Run
from lexloom.training.loop import train
from lexloom.training.progress import PROGRESS, Progress
from lexloom.training.ray.progress_file import write_progress
from lexloom.training.stopping import Stopping
from lexloom.training.sync.config import SyncConfig
from lexloom.training.trainable import Trainable

LANES = 8
CHECKPOINT_FORMAT = 3  # raised by hand when what a checkpoint holds changes
TRAIN, VALIDATION = "train-*.parquet", "validation-*.parquet"  # a stage's examples, and those it held out
MIX_BYTES = 1 << 24  # in each lane: a few thousand contexts of 1,024 tokens, or a million windows
ACCOUNTS = ("data", "compute", "sync", "evaluation", "checkpoint")


class TrainConfig(BaseModel):
    """How any model is trained on many workers.

    `mix_bytes` is how many bytes of examples each lane shuffles at a time (`Job.mix_bytes`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    mix_bytes: ClassVar[int] = 0  # a kernel of word2vec needs the pairs of one word side by side

    epochs: int = Field(5, ge=1, description="passes over all examples", json_schema_extra={"position": 0})
    workers: int = Field(
        2,
        ge=1,
        le=LANES,
        description="data-parallel workers, one replica of the model each; 1 with the local runner",
        json_schema_extra={"position": 1},
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        le=LANES,
        description="while the cluster has no room for all workers, train with as few as this",
        json_schema_extra={"position": 13},
    )
    threads: int = Field(
        1,
        ge=1,
        le=256,
        description="threads of one worker; more than one make a CPU run fast but not repeatable to the bit",
        json_schema_extra={"position": 2},
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="'cuda' gives every worker a GPU", json_schema_extra={"position": 14}
    )
    batch_size: int = Field(
        32_768,
        ge=LANES,
        description="examples of one step, over all workers",
        json_schema_extra={"position": 3},
    )
    max_steps: int | None = Field(
        None, ge=1, description="end after so many steps at most", json_schema_extra={"position": 4}
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="end after so many seconds of training at most: the learning rate follows the time then,"
        " and how far it gets depends on the machine",
        json_schema_extra={"position": 5},
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="end when the error ceases to shrink: after so many evaluations in a row that were no"
        " better",
        json_schema_extra={"position": 6},
    )
    min_delta: float = Field(
        0.0,
        ge=0,
        description="a validation loss is better if it is lower by more than this",
        json_schema_extra={"position": 7},
    )
    evaluate_every: int | None = Field(
        None,
        ge=1,
        description="steps between two evaluations on held-out examples; if not given, one an epoch",
        json_schema_extra={"position": 8},
    )
    checkpoint_every: Annotated[int | None, RunOnly()] = Field(
        None,
        ge=1,
        description="steps between two checkpoints; if not given, the clock alone decides",
        json_schema_extra={"position": 9},
    )
    checkpoint_seconds: Annotated[float, RunOnly()] = Field(
        60.0,
        gt=0,
        description="seconds between two checkpoints; more where they would take over 2% of the time",
        json_schema_extra={"position": 15},
    )
    seed: int = Field(
        1,
        ge=0,
        description="start values, order of examples, and all other chance",
        json_schema_extra={"position": 10},
    )
    runner: Annotated[Literal["ray", "local"], RunOnly()] = Field(
        "ray",
        description="'ray' trains on Ray Train workers; 'local' one worker in this process, without Ray",
        json_schema_extra={"position": 11},
    )
    ray_address: Annotated[str, RunOnly()] = Field(
        "",
        description="a Ray cluster to train on, and to work on pieces of the text ('auto' finds one); empty"
        " takes the one that RAY_ADDRESS names, or starts Ray on this machine",
        json_schema_extra={"position": 12},
    )

    @model_validator(mode="before")
    @classmethod
    def local_is_one_worker(cls, values: Any) -> Any:
        """The local runner has one worker, where nothing else is said."""
        if isinstance(values, dict) and values.get("runner") == "local":
            return {"workers": 1, **values}
        return values

    @model_validator(mode="after")
    def workers_fit(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} is above the {counted(self.workers, 'workers')}: lower it"
            )
        if self.runner == "local" and self.workers != 1:
            raise ValueError(
                f"the local runner has one worker, not {self.workers}: say --workers 1, or --runner ray"
            )
        return self

    @property
    def cluster(self) -> str:
        """The Ray cluster: what is given, or what RAY_ADDRESS names; empty for this machine."""
        return (self.ray_address or os.environ.get("RAY_ADDRESS", "")) if self.runner == "ray" else ""

    def stopping(self) -> Stopping:
        return Stopping(
            max_epochs=self.epochs,
            max_steps=self.max_steps,
            max_seconds=self.max_seconds,
            patience=self.patience,
            min_delta=self.min_delta,
        )


class GradientTrainConfig(TrainConfig):
    """Training of a model with gradients: all strategies of training/sync/config.py are available."""

    mix_bytes: ClassVar[int] = MIX_BYTES  # each batch has examples of many texts

    sync: Literal["all_reduce", "average", "diloco"] = Field(
        "all_reduce",
        description="how workers agree: gradients every step; the mean of their parameters every sync_period"
        " steps; or their mean move fed to an outer optimizer",
        json_schema_extra={"position": 21},
    )
    sync_period: int = Field(
        20,
        ge=1,
        description="steps between two exchanges (average and diloco)",
        json_schema_extra={"position": 22},
    )
    warm_up_steps: int = Field(
        0,
        ge=0,
        description="steps of all_reduce before average or diloco begins",
        json_schema_extra={"position": 23},
    )
    optimizer_state: Literal["average", "keep"] = Field(
        "average",
        description="what becomes of the optimizer's state at an exchange (average): its mean, or each"
        " worker's own",
        json_schema_extra={"position": 24},
    )
    outer_learning_rate: float = Field(
        0.7, gt=0, le=10, description="of diloco's outer optimizer", json_schema_extra={"position": 25}
    )
    outer_momentum: float = Field(
        0.9, ge=0, lt=1, description="of diloco's outer optimizer", json_schema_extra={"position": 26}
    )
    wire: Literal["float32", "bfloat16"] = Field(
        "float32", description="in what diloco's moves travel", json_schema_extra={"position": 27}
    )

    @model_validator(mode="after")
    def strategy_fits(self) -> Self:
        self.synchronisation()
        return self

    def synchronisation(self) -> SyncConfig:
        return SyncConfig(
            self.sync,
            period=1 if self.sync == "all_reduce" else self.sync_period,
            warm_up_steps=self.warm_up_steps,
            optimizer_state=self.optimizer_state,
            outer_learning_rate=self.outer_learning_rate,
            outer_momentum=self.outer_momentum,
            wire=self.wire,
        )


def plan_job(
    config: TrainConfig,
    make_trainable: Callable[[], Trainable],
    examples: Artifact,
    columns: tuple[str, ...],
    others: Sequence[Input],
    scratch: Path,
    sync: SyncConfig,
    sample: Callable[[Any], str] | None = None,
    **own: Any,
) -> Job:
    """The job of a config; its checkpoints, in `scratch`, are good for this config and these inputs only.

    What the model has of its `own` takes the place of fields of the job that are set here.
    """
    keys = [examples.key, *(other.key for other in others)]
    fields: dict[str, Any] = {
        "make_trainable": make_trainable,
        "files": tuple(examples.files(TRAIN)),
        "columns": columns,
        "checkpoints": scratch / CHECKPOINTS,
        "fingerprint": digest_key(type(config).__name__, CHECKPOINT_FORMAT, canonical(config), keys),
        "batch_size": config.batch_size,
        "lanes": LANES,
        "stopping": config.stopping(),
        "sync": sync,
        "checkpoint_every": config.checkpoint_every,
        "checkpoint_seconds": config.checkpoint_seconds,
        "seed": config.seed,
        "device": config.device,
        "validation": tuple(examples.files(VALIDATION)),
        "evaluate_every": config.evaluate_every,
        "sample": sample,
        "mix_bytes": config.mix_bytes,
    }
    return Job(**(fields | own))


def run_job(job: Job, config: TrainConfig, unit: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Runs a job where the config says; returns its metrics and the model's tensors.

    Where examples are held out, the tensors are those of the best step; else of the last. A run that is
    interrupted (SIGINT, SIGTERM, a cancel) says what the same command will go on from.
    """
    note = partial(console.note, "training")
    checkpoints = Checkpoints(job.checkpoints, job.fingerprint)
    begun = checkpoints.load()
    if begun is not None:
        note(f"goes on from its checkpoint of step {begun.state['step']:,}")
    starting = "" if config.runner == "local" else f"starting {counted(config.workers, 'Ray workers')}"
    try:
        with shown_progress(unit, starting) as on_progress:
            if config.runner == "local":
                train_here(job, on_progress, note)
            else:
                module("lexloom.training.ray.trainer").train_on_ray(
                    job,
                    workers=(config.min_workers or config.workers, config.workers),
                    address=config.cluster or None,
                    verbose=bool(os.environ.get("LEXLOOM_VERBOSE")),
                    on_progress=on_progress,
                    on_note=note,
                )
    except Exception:
        raise
    except BaseException:
        note(f"stopped; {checkpoints.describe_resume()}")
        raise
    last, best = results(checkpoints)
    return metrics_of(Run(**last.state)), best.tensors


def train_here(job: Job, on_progress: Callable[[Progress], None], note: Callable[[str], None]) -> None:
    """Train with one worker in this process; a first SIGINT or SIGTERM waits for a step and a checkpoint."""

    def on_point(point: Progress) -> None:
        write_progress(job.checkpoints.parent / PROGRESS, point)  # `lexloom status` reads it
        on_progress(point)

    def on_signal() -> None:
        note("stopping after this step; interrupt again to stop without a checkpoint")

    run_interruptibly(
        lambda interrupted: train(job, on_progress=on_point, interrupted=interrupted), on_signal
    )


def results(checkpoints: Checkpoints) -> tuple[Checkpoint, Checkpoint]:
    """The last checkpoint of a run that is over, and the best one."""
    last = checkpoints.load()
    if last is None:
        raise RuntimeError(f"training ended without a checkpoint in {checkpoints.folder}")
    step = Run(**last.state).best_step
    best = last if step is None or step == last.state["step"] else checkpoints.load_step(step)
    if best is None:
        raise OSError(
            f"the best model's checkpoint, of step {step:,} in {checkpoints.folder}, is damaged: remove that"
            " folder and train again"
        )
    return last, best


def metrics_of(run: Run) -> dict[str, Any]:
    """What metrics.json says of a run: how far it came, why it ended, and where its time went."""
    last_epoch = [point for point in run.history if point["epoch"] == run.history[-1]["epoch"]]
    metrics: dict[str, Any] = {
        "loss": mean_loss(last_epoch),
        "epochs": run.epoch if run.step_in_epoch == 0 else run.epoch + 1,
        "steps": run.step,
        "examples": run.examples,
        "examples_per_second": round(run.examples / run.seconds),
        "workers": run.history[-1]["workers"],
        "stop_reason": run.stop_reason,
        **({"precision": "bfloat16" if run.decisions["bfloat16"] else "float32"} if run.decisions else {}),
        "seconds": round(run.seconds, 3),
        **{f"{account}_seconds": round(getattr(run, f"{account}_seconds"), 3) for account in ACCOUNTS},
        "sync_bytes": run.sync_bytes,
    }
    if run.scores:
        best = min(run.scores, key=lambda score: score["loss"])
        metrics |= {"validation_loss": best["loss"], "best_step": best["step"], "scores": run.scores}
    return metrics | {"history": run.history}


def mean_loss(history: list[dict[str, Any]]) -> float:
    """The mean over the examples of some points."""
    examples = sum(point["loss_examples"] for point in history)
    return sum(point["loss"] * point["loss_examples"] for point in history) / examples
