"""Training stages: join a model's mathematics with the training loop, and write the model folder.

A model folder holds `model.safetensors`, `vocabulary.json`, `config.json`, `metrics.json`, a model card and
what the ecosystem reads (`word2vec.bin`).
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.word2vec import Word2Vec, WordVectors
from tasks import console
from tasks.artifacts import Artifact, RunOnly, Summary, canonical, digest_key
from tasks.noise import read_noise
from tasks.stage import stage
from tasks.vocabulary import read_vocabulary
from training.checkpoint import Checkpoints
from training.job import Job, Progress
from training.loop import train
from training.stopping import Stopping
from training.sync import SyncConfig

LANES = 8
CHECKPOINT_FORMAT = 1  # raised by hand when what a checkpoint holds changes


class TrainConfig(BaseModel):
    """How any model is trained on many workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(5, ge=1, description="passes over all examples", json_schema_extra={"position": 0})
    workers: int = Field(
        2,
        ge=1,
        le=LANES,
        description="data-parallel workers, one replica of the model each",
        json_schema_extra={"position": 1},
    )
    threads: int = Field(
        1,
        ge=1,
        le=256,
        description="threads of one worker; more than one make a CPU run fast but not repeatable to the bit",
        json_schema_extra={"position": 2},
    )
    batch_size: int = Field(
        32_768,
        ge=LANES,
        description="examples of one step, over all workers",
        json_schema_extra={"position": 3},
    )
    checkpoint_every: int = Field(
        1000, ge=1, description="steps between two checkpoints", json_schema_extra={"position": 5}
    )
    seed: int = Field(
        1, ge=0, description="start values, order of examples, negatives", json_schema_extra={"position": 6}
    )
    runner: Annotated[Literal["ray", "local"], RunOnly()] = Field(
        "ray",
        description="'ray' trains on Ray Train workers; 'local' one worker in this process, without Ray",
        json_schema_extra={"position": 7},
    )
    ray_address: Annotated[str, RunOnly()] = Field(
        "",
        description="a Ray cluster to train on ('auto' finds one); empty starts Ray on this machine",
        json_schema_extra={"position": 8},
    )

    @model_validator(mode="after")
    def local_means_one_worker(self) -> Self:
        if self.runner == "local" and self.workers != 1:
            raise ValueError(
                f"the local runner has one worker, not {self.workers}: say --workers 1, or --runner ray"
            )
        return self


class TrainWord2VecConfig(TrainConfig):
    """Skip-gram with negative sampling (Mikolov et al., 2013)."""

    dim: int = Field(
        100, ge=1, le=4096, description="length of a word's vector", json_schema_extra={"position": 10}
    )
    negatives: int = Field(
        5, ge=1, le=100, description="noise words drawn for each target", json_schema_extra={"position": 11}
    )
    # not word2vec's 0.025: at one and at five epochs 0.05 gives better vectors (benchmarks/LOG.md)
    learning_rate: float = Field(
        0.05, gt=0, le=10, description="learning rate at the start", json_schema_extra={"position": 12}
    )
    min_learning_rate: float = Field(
        0.0001,
        ge=0,
        le=10,
        description="learning rate at the end; it falls linearly with the pairs done",
        json_schema_extra={"position": 13},
    )
    sync_period: int = Field(
        1,
        ge=1,
        description="steps between two exchanges of the frequent words' rows",
        json_schema_extra={"position": 14},
    )
    sync_rare_period: int = Field(
        16,
        ge=1,
        description="steps between two exchanges of all words' rows",
        json_schema_extra={"position": 15},
    )
    frequent_words: int = Field(
        1000,
        ge=0,
        description="how many of the most frequent words are exchanged more often",
        json_schema_extra={"position": 16},
    )

    @model_validator(mode="after")
    def rates_fall_and_periods_fit(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}:"
                " lower it"
            )
        if self.sync_rare_period < self.sync_period:
            raise ValueError(
                f"sync_rare_period {self.sync_rare_period} is below sync_period {self.sync_period}:"
                " rare words are not exchanged more often than frequent ones"
            )
        return self


@stage(version=1)
def train_word2vec(
    pairs: Artifact,
    noise: Artifact,
    vocabulary: Artifact,
    config: TrainWord2VecConfig,
    out: Path,
    scratch: Path,
) -> Summary:
    """Trains the two tables on the pair shards and writes the model folder."""
    probability, alias = read_noise(noise)
    job = Job(
        make_trainable=partial(
            Word2Vec,
            probability,
            alias,
            dim=config.dim,
            negatives=config.negatives,
            learning_rate=config.learning_rate,
            min_learning_rate=config.min_learning_rate,
            seed=config.seed,
            threads=config.threads,
        ),
        files=tuple(pairs.files()),
        columns=("target", "context"),
        checkpoints=scratch / "checkpoints",
        fingerprint=digest_key(
            "word2vec", CHECKPOINT_FORMAT, canonical(config), [pairs.key, noise.key, vocabulary.key]
        ),
        batch_size=config.batch_size,
        lanes=LANES,
        stopping=Stopping(max_epochs=config.epochs),
        sync=SyncConfig(
            "delta_sum",
            period=config.sync_period,
            frequent_rows=config.frequent_words,
            rare_period=config.sync_rare_period,
        ),
        checkpoint_every=config.checkpoint_every,
        seed=config.seed,
    )
    metrics, tensors = run_job(job, config, unit="pairs")
    words, _ = read_vocabulary(vocabulary)
    vectors = WordVectors(words.to_pylist(), tensors["vectors"][:, : config.dim])
    vectors.save(out)
    vectors.save_word2vec(out / "word2vec.bin", binary=True)
    write_json(out / "config.json", {"model": "word2vec", **canonical(config)})
    write_json(out / "metrics.json", metrics)
    (out / "README.md").write_text(word2vec_card(config, metrics, len(words)), encoding="utf-8")
    return Summary(
        rows_in=metrics["examples"],
        unit_in=f"pairs in {config.epochs} epochs",
        rows=len(words),
        unit="word vectors",
        facts={name: value for name, value in metrics.items() if name != "history"},
    )


def run_job(job: Job, config: TrainConfig, unit: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs a job where the config says; returns its metrics and the model's tensors."""
    begun = Checkpoints(job.checkpoints, job.fingerprint).load()
    if begun is not None:
        console.note("training", f"goes on from its checkpoint of step {begun.state['step']:,}")
    starting = "" if config.runner == "local" else f"starting {config.workers} Ray workers"
    with shown_progress(unit, starting) as on_progress:
        if config.runner == "local":
            train(job, on_progress=on_progress)
        else:
            from training.ray_trainer import train_on_ray  # here, since importing ray takes seconds

            train_on_ray(
                job,
                workers=config.workers,
                address=config.ray_address or None,
                verbose=bool(os.environ.get("LEXLOOM_VERBOSE")),
                on_progress=on_progress,
                on_note=partial(console.note, "training"),
            )
    found = Checkpoints(job.checkpoints, job.fingerprint).load()
    if found is None:
        raise RuntimeError(f"training ended without a checkpoint in {job.checkpoints}")
    history = found.state["history"]
    seconds = found.state["seconds"]
    last_epoch = [point for point in history if point["epoch"] == history[-1]["epoch"]]
    return {
        "loss": mean_loss(last_epoch),
        "epochs": job.stopping.max_epochs,
        "examples": found.state["examples"],
        "seconds": round(seconds, 3),
        "examples_per_second": round(found.state["examples"] / seconds),
        "workers": config.workers,
        "sync_seconds": round(found.state["sync_seconds"], 3),
        "sync_bytes": found.state["sync_bytes"],
        "stop_reason": found.state["stop_reason"],
        "history": history,
    }, found.tensors


def mean_loss(history: list[dict[str, Any]]) -> float:
    """The mean over the examples of some points, each of which has the mean since the one before."""
    ends = [point["examples"] for point in history]
    weights = [ends[0], *(later - earlier for earlier, later in pairwise(ends))]
    if len(history) > 1:
        weights[0] = weights[1]  # the first point began before: as long as its neighbour
    return sum(w * point["loss"] for w, point in zip(weights, history, strict=True)) / sum(weights)


@contextmanager
def shown_progress(unit: str, first: str) -> Iterator[Any]:
    """A callback that shows each point in the terminal and, in a Prefect run, as a progress artifact."""
    artifact_id: UUID | None = None
    if TaskRunContext.get() is not None:
        artifact_id = cast(UUID, create_progress_artifact(0.0, key="training", description=f"{unit} trained"))
    with console.bar("training", first=first) as bar:

        def on_progress(point: Progress) -> None:
            rate = point.examples / point.seconds
            bar.update(
                point.examples,
                f"{rate / 1e6:.2f}M {unit}/s  loss {point.loss:.3f}  rate {point.learning_rate:.4f}",
                total=point.total_examples,
            )
            if artifact_id is not None:
                update_progress_artifact(
                    artifact_id,
                    100 * point.examples / point.total_examples,
                    description=json.dumps(asdict(point)),
                )

        yield on_progress


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def word2vec_card(config: TrainWord2VecConfig, metrics: dict[str, Any], words: int) -> str:
    """The model card: what it is, how it was made, how to load it."""
    return f"""# Word vectors

{words:,} words, {config.dim} dimensions, skip-gram with {config.negatives} negative samples; trained by
Lexloom on {metrics["examples"]:,} pairs ({config.epochs} epochs) in {metrics["seconds"]:.1f} seconds, mean
loss in the last epoch {metrics["loss"]:.4f}.

| file | what is in it |
|---|---|
| `model.safetensors` | `vectors`: float32, one row a word |
| `vocabulary.json` | word -> row |
| `word2vec.bin` | the same vectors in word2vec's binary format |
| `config.json`, `metrics.json` | how it was trained, and how it went |

```python
from models.word2vec import WordVectors
vectors = WordVectors.load("this folder")
vectors.neighbours(["peace"], k=10)

from gensim.models import KeyedVectors
KeyedVectors.load_word2vec_format("this folder/word2vec.bin", binary=True)
```
"""
