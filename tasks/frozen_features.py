"""Features: what the trained part of a classifier reads of every review, computed once.

The frozen part of the encoder gives the same activations in every epoch, so they are computed here, and
training reads them. Reviews are computed in the order of their lengths, so that little of a batch is padding.
With `cache_features=False` the token ids take the activations' place, and training goes through the whole
encoder in each step: the plain way, for when activations would not fit on the disk (a review of 256 tokens
takes 200 KB of them at a width of 384).

Activations kept in bfloat16 are computed in it too on a processor that is faster so (`is_bfloat16_faster`).
That changes their numbers and is no part of the key: as the order of sums is, it is the machine's; float32 is
free of it. Without a cache `dtype` changes nothing, but is in the key: at worst the same is made twice.

The work is done in windows of some hundred reviews. A window goes in as texts and comes out as one file, and
depends on nothing else; finished ones outlive a run that was stopped.

    features-00000.safetensors           `activations` (N, D) or `tokens` (N,): all reviews of a window, one
                                         after the other
    train-00000.parquet (or validation)  a row a review: `shard`, `start`, `length` say where its run of rows
                                         lies, `label` is its label's number
"""

import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lexloom.models.precision import Layer, is_bfloat16_faster
from lexloom.models.sentiment.batching import group_by_length, map_in_threads, pad_batch
from lexloom.models.sentiment.encoder_structure import max_text_length
from lexloom.models.sentiment.frozen_encoder import FrozenPart, TrainedPart
from lexloom.models.sentiment.hf_loading import load_classifier, load_tokenizer, require_device
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.sources.backbone import Backbone
from lexloom.tasks.split import PARTS, labels_of
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary, canonical
from lexloom.tasks.store.parallel import fan_out
from lexloom.tasks.store.stage import stage

READ_PARTS = PARTS[:2]  # the test part is read by the finished model alone
TOKENS_AT_ONCE = {"cpu": 1 << 12, "cuda": 1 << 16}
SCHEMA = pa.schema(
    [("shard", pa.int32()), ("start", pa.int64()), ("length", pa.int32()), ("label", pa.int32())]
)
COLUMNS = tuple(SCHEMA.names)
ROWS, RUNS = "*.parquet", "features-*.safetensors"
ACTIVATIONS, TOKENS = "activations", "tokens"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class FeaturesConfig(BaseModel):
    """Where the frozen part ends, and in what form its activations are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trainable_blocks: int = Field(
        1,
        ge=0,
        description="how many of the encoder's last blocks are trained with the classifier; what is below"
        " them is frozen",
        json_schema_extra={"position": 0},
    )
    max_length: int = Field(
        256,
        ge=8,
        le=8192,
        description="tokens of a review that are read, its first ones (its last, if the tokenizer says so)",
        json_schema_extra={"position": 1},
    )
    cache_features: bool = Field(
        True,
        description="compute the frozen part's activations once and train from them; else it runs in every"
        " step",
        json_schema_extra={"position": 2},
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16",
        description="in what activations are kept; in bfloat16 they are computed too, where that is faster;"
        " without the cache it changes nothing",
        json_schema_extra={"position": 3},
    )
    device: Annotated[Literal["cpu", "cuda"] | None, RunOnly()] = Field(
        None,
        description="what computes the activations; in a flow what trains, by default",
        json_schema_extra={"position": 4},
    )


@stage(version=3)
def features(
    reviews: Artifact, backbone: Backbone, config: FeaturesConfig, out: Path, scratch: Path
) -> Summary:
    """Computes the features of the train and of the validation part.

    Raises:
        ValueError: the backbone has no tokenizer, reads fewer tokens than asked for, or can't be cut there.
        OverflowError: an activation is beyond the range of float16.
    """
    reader = Reader(backbone.folder, config)
    windows = windows_of(reviews)
    totals = {part: Counter[str]() for part in READ_PARTS}
    with (
        fan_out(
            lambda window: window.compute(reader, scratch),
            windows,
            concurrent=False,
            gpu=config.device == "cuda",
        ) as computed,
        console.bar("features", total=sum(window.rows for window in windows)) as bar,
    ):
        done = 0
        for window, counts in zip(windows, computed, strict=True):
            totals[window.part].update(counts)
            done += window.rows
            bar.update(done, counted(done, "reviews"))
    for pattern in (ROWS, RUNS):
        for path in scratch.glob(pattern):
            shutil.move(path, out / path.name)
    train, validation = (totals[part] for part in READ_PARTS)
    return Summary(
        rows_in=done,
        unit_in="reviews",
        rows=train["tokens"] + validation["tokens"],
        unit="activations" if config.cache_features else "tokens",
        notes={f"truncated to {counted(config.max_length, 'tokens')}": train["cut"] + validation["cut"]},
        facts={
            "labels": reviews.facts["labels"],
            "label_counts": [train[str(label)] for label in range(len(labels_of(reviews)))],
            "train": train["reviews"],
            "validation": validation["reviews"],
            "options": canonical(config),
            **reviews.normalization,
        },
    )


def label_counts(features: Artifact) -> list[int]:
    """How many reviews of the train part have each label."""
    return cast(list[int], features.facts["label_counts"])


def read_options(features: Artifact) -> FeaturesConfig:
    """The config that features were made with."""
    return FeaturesConfig.model_validate(features.facts["options"])


@dataclass(frozen=True)
class Window:
    """A row group of a part's shard: the unit of work."""

    number: int
    part: str
    path: Path
    row_group: int
    rows: int

    def __str__(self) -> str:
        return f"{self.path}, row group {self.row_group}"

    def compute(self, reader: "Reader", folder: Path) -> dict[str, int]:
        """Writes the window's two files, unless they are there; returns what there is to count in it.

        Counts: `reviews`, `tokens`, `cut` (reviews that were longer), and the reviews of each label.
        """
        runs_file = folder / features_file(self.number)
        rows_file = folder / f"{self.part}-{self.number:05d}.parquet"
        if not (runs_file.is_file() and rows_file.is_file()):  # a kill may have left one, or moved one out
            with pq.ParquetFile(self.path) as file:
                table = file.read_row_group(self.row_group)
            runs, lengths, cut = reader.read(table["text"].to_pylist())
            write_whole(runs_file, lambda path: save_file(runs, path))
            ends = np.cumsum(lengths)
            rows = [np.full(len(ends), self.number), ends - lengths, lengths, table["label"].to_numpy()]
            made = pa.table([pa.array(column) for column in rows], names=SCHEMA.names).cast(SCHEMA)
            made = made.replace_schema_metadata({"cut": str(cut)})
            write_whole(rows_file, lambda path: pq.write_table(made, path))
        made = pq.read_table(rows_file)
        labels = Counter(map(str, made["label"].to_pylist()))
        tokens = pc.sum(made["length"]).as_py()
        return {**labels, "reviews": len(made), "tokens": tokens, "cut": int(made.schema.metadata[b"cut"])}


def windows_of(reviews: Artifact) -> list[Window]:
    groups = [
        (part, path, group, metadata.row_group(group).num_rows)
        for part in READ_PARTS
        for path in reviews.files(f"{part}-*.parquet")
        if (metadata := pq.read_metadata(path))
        for group in range(metadata.num_row_groups)
    ]
    return [Window(number, *found) for number, found in enumerate(groups)]


def features_file(number: int) -> str:
    return f"features-{number:05d}.safetensors"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """A file that is there is complete."""
    # a name that no other node has: one that is given up as lost may still be writing
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    write(unfinished)
    unfinished.rename(path)


class Reader:
    """Texts to features by a backbone."""

    def __init__(self, folder: Path, config: FeaturesConfig) -> None:
        self._folder = folder
        self._device = config.device or "cpu"
        require_device(self._device)
        tokenizer = load_tokenizer(folder)
        # made here, long before it is trained, so that a backbone that can't be is refused at once
        TrainedPart(load_classifier(folder), config.trainable_blocks, from_activations=config.cache_features)
        model = load_classifier(folder)
        longest = min(tokenizer.model_max_length, max_text_length(model) or tokenizer.model_max_length)
        if config.max_length > longest:
            raise ValueError(
                f"max_length {config.max_length} is more than the {counted(longest, 'tokens')} that the"
                f" backbone in {folder} can read: lower it"
            )
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(config.max_length, direction=tokenizer.truncation_side)
        self._config = config
        if config.cache_features:
            width = model.config.hidden_size
            layer = Layer(TOKENS_AT_ONCE[self._device], width, 4 * width)
            bfloat16 = config.dtype == "bfloat16" and is_bfloat16_faster(layer, self._device)
            self._frozen = FrozenPart(model, config.trainable_blocks, bfloat16=bfloat16).to(self._device)

    def __reduce__(self) -> tuple[type["Reader"], tuple[Path, FeaturesConfig]]:
        return Reader, (self._folder, self._config)  # another process loads its own

    def read(self, texts: list[str]) -> tuple[dict[str, Tensor], NDArray[np.int64], int]:
        """The runs of some texts one after the other, their lengths, and how many texts were cut."""
        encodings = self._tokenizer.encode_batch(texts)
        lengths = np.array([len(encoding.ids) for encoding in encodings])
        cut = sum(bool(encoding.overflowing) for encoding in encodings)
        ids = [torch.tensor(encoding.ids, dtype=torch.int32) for encoding in encodings]
        if not self._config.cache_features:
            return {TOKENS: torch.cat(ids)}, lengths, cut
        return {ACTIVATIONS: self._activations(ids, lengths)}, lengths, cut

    def _activations(self, ids: list[Tensor], lengths: NDArray[np.int64]) -> Tensor:
        """(N, D), N the sum of the lengths."""
        device, dtype = self._device, DTYPES[self._config.dtype]

        def activations(rows: NDArray[np.int64]) -> list[Tensor]:
            batch, mask = pad_batch([ids[row] for row in rows])
            found = self._frozen(batch.to(device), mask.to(device)).to(dtype).cpu()
            return [run[: lengths[row]].clone() for row, run in zip(rows, found, strict=True)]

        groups = list(group_by_length(lengths, TOKENS_AT_ONCE[device]))
        runs: list[Tensor] = [torch.empty(0)] * len(ids)
        for rows, found in zip(groups, map_in_threads(activations, groups, device), strict=True):
            for row, run in zip(rows, found, strict=True):
                runs[row] = run
        together = torch.cat(runs)
        if not together.isfinite().all():
            raise OverflowError(
                f"an activation is beyond the range of {self._config.dtype}: keep them as bfloat16 or float32"
            )
        return together


class Runs:
    """The features in a folder, mapped into memory: what rows of the Parquet shards point to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: dict[int, Tensor] = {}

    def __reduce__(self) -> tuple[type["Runs"], tuple[Path]]:
        return Runs, (self._folder,)  # a worker maps its own

    def run(self, shard: int, start: int, length: int) -> Tensor:
        """(length, D) activations or (length,) ids.

        Raises:
            OSError: the file can't be read.
        """
        if shard not in self._shards:
            path = self._folder / features_file(shard)
            try:
                (self._shards[shard],) = load_file(path).values()
            except (OSError, SafetensorError) as error:
                raise OSError(f"the features {path} can't be read ({error}): compute them again") from error
        return self._shards[shard][start : start + length]
