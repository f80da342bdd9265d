"""Computes the inputs of a classifier's trained part for every review, once.

The frozen part of the encoder returns the same activations in every epoch, so they are computed here, and
training reads them. Reviews are batched by length, to avoid padding. With `cache_features=False`, token ids
are stored instead, and training runs the whole encoder in each step, for when the activations do not fit on
the disk: a review of 256 tokens takes 200 KB at a width of 384.

Activations that are stored in bfloat16 are also computed in bfloat16 if the processor is faster with it
(`is_bfloat16_faster`). Like the order of sums, this depends on the machine, changes the numbers, and is not
part of the key; float32 avoids it. Without a cache, `dtype` has no effect but is still part of the key.

Reviews are processed in groups of a few hundred, one row group each. A group depends on its texts only, and
finished groups are kept if the run is stopped.

    features-00000.safetensors           `activations` (N, D) or `tokens` (N,): the concatenated reviews of a
                                         group
    train-00000.parquet (or validation)  a row per review: `shard`, `start` and `length` locate its features,
                                         `label` is its label number
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

from lexloom.models.device import find_device
from lexloom.models.precision import Layer, is_bfloat16_faster
from lexloom.models.sentiment.batching import group_by_length, map_in_threads, pad_batch
from lexloom.models.sentiment.encoder_structure import max_text_length
from lexloom.models.sentiment.frozen_encoder import FrozenPart, TrainedPart
from lexloom.models.sentiment.hf_loading import load_classifier, load_tokenizer, require_device
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.sources.backbone import Backbone
from lexloom.tasks.split import PARTS, read_label_names
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary, canonical
from lexloom.tasks.store.parallel import fan_out
from lexloom.tasks.store.stage import stage

COMPUTED_PARTS = PARTS[:2]  # only the finished model reads the test part
TOKENS_AT_ONCE = {"cpu": 1 << 12, "cuda": 1 << 16}
SCHEMA = pa.schema(
    [("shard", pa.int32()), ("start", pa.int64()), ("length", pa.int32()), ("label", pa.int32())]
)
COLUMNS = tuple(SCHEMA.names)
ROWS, FEATURES = "*.parquet", "features-*.safetensors"
ACTIVATIONS, TOKENS = "activations", "tokens"
GPU_USE: dict[str, bool | None] = {"auto": None, "cpu": False, "cuda": True}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class FeaturesConfig(BaseModel):
    """Which part of the encoder is frozen, and how its activations are stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trainable_blocks: int = Field(
        1, ge=0, description="Number of last encoder blocks to train with the classifier; others are frozen."
    )
    max_length: int = Field(
        256,
        ge=8,
        le=8192,
        description="Maximum number of tokens per review; longer reviews are truncated at the end, or at the"
        " start if the tokenizer is configured that way.",
    )
    cache_features: bool = Field(
        True,
        description="Compute the activations of the frozen part once, instead of in every step.",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16",
        description="Data type of cached activations; bfloat16 is also used to compute them if it is faster."
        " No effect without the cache.",
    )
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, RunOnly()] = Field(
        None, description="Device that computes the activations (default: the training device)."
    )


@stage(version=3)
def frozen_features(
    reviews: Artifact, backbone: Backbone, config: FeaturesConfig, out: Path, scratch: Path
) -> Summary:
    """Compute the features of the train and validation parts.

    Raises:
        ValueError: the backbone has no tokenizer, accepts fewer tokens than requested, or can't be split
        there. OverflowError: an activation is beyond the range of float16.
    """
    extractor = FeatureExtractor(backbone.folder, config)
    groups = list_groups(reviews)
    totals = {part: Counter[str]() for part in COMPUTED_PARTS}
    with (
        fan_out(
            lambda group: group.compute(extractor, scratch),
            groups,
            concurrent=False,
            gpu=GPU_USE[config.device or "auto"],
        ) as computed,
        console.bar("features", total=sum(group.rows for group in groups)) as bar,
    ):
        done = 0
        for group, counts in zip(groups, computed, strict=True):
            totals[group.part].update(counts)
            done += group.rows
            bar.update(done, counted(done, "reviews"))
    for pattern in (ROWS, FEATURES):
        for path in scratch.glob(pattern):
            shutil.move(path, out / path.name)
    train, validation = (totals[part] for part in COMPUTED_PARTS)
    return Summary(
        rows_in=done,
        unit_in="reviews",
        rows=train["tokens"] + validation["tokens"],
        unit="activations" if config.cache_features else "tokens",
        notes={f"truncated to {counted(config.max_length, 'tokens')}": train["cut"] + validation["cut"]},
        facts={
            "labels": reviews.facts["labels"],
            "label_counts": [train[str(label)] for label in range(len(read_label_names(reviews)))],
            "train": train["reviews"],
            "validation": validation["reviews"],
            "options": canonical(config),
            **reviews.normalization,
        },
    )


def read_label_counts(features: Artifact) -> list[int]:
    """Return the number of reviews with each label in the train part."""
    return cast(list[int], features.facts["label_counts"])


def read_features_config(features: Artifact) -> FeaturesConfig:
    """Read the config that features were computed with."""
    return FeaturesConfig.model_validate(features.facts["options"])


@dataclass(frozen=True)
class ReviewGroup:
    """A row group of reviews, which is processed at once."""

    number: int
    part: str
    path: Path
    row_group: int
    rows: int

    def __str__(self) -> str:
        return f"{self.path}, row group {self.row_group}"

    def compute(self, extractor: "FeatureExtractor", folder: Path) -> dict[str, int]:
        """Write the two files of the group, unless they exist; return its counts.

        Counts: `reviews`, `tokens`, `cut` (truncated reviews), and the reviews of each label.
        """
        runs_file = folder / features_file(self.number)
        rows_file = folder / f"{self.part}-{self.number:05d}.parquet"
        if not (runs_file.is_file() and rows_file.is_file()):  # a killed run may have left only one
            with pq.ParquetFile(self.path) as file:
                table = file.read_row_group(self.row_group)
            runs, lengths, cut = extractor.extract(table["text"].to_pylist())
            write_atomically(runs_file, lambda path: save_file(runs, path))
            ends = np.cumsum(lengths)
            rows = [np.full(len(ends), self.number), ends - lengths, lengths, table["label"].to_numpy()]
            made = pa.table([pa.array(column) for column in rows], names=SCHEMA.names).cast(SCHEMA)
            made = made.replace_schema_metadata({"cut": str(cut)})
            write_atomically(rows_file, lambda path: pq.write_table(made, path))
        made = pq.read_table(rows_file)
        labels = Counter(map(str, made["label"].to_pylist()))
        tokens = pc.sum(made["length"]).as_py()
        return {**labels, "reviews": len(made), "tokens": tokens, "cut": int(made.schema.metadata[b"cut"])}


def list_groups(reviews: Artifact) -> list[ReviewGroup]:
    row_groups = [
        (part, path, group, metadata.row_group(group).num_rows)
        for part in COMPUTED_PARTS
        for path in reviews.files(f"{part}-*.parquet")
        if (metadata := pq.read_metadata(path))
        for group in range(metadata.num_row_groups)
    ]
    return [ReviewGroup(number, *found) for number, found in enumerate(row_groups)]


def features_file(number: int) -> str:
    return f"features-{number:05d}.safetensors"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: if it exists, it is complete."""
    # a unique name, since a node that Ray considers lost may still be writing
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    write(unfinished)
    unfinished.rename(path)


class FeatureExtractor:
    """Computes features of texts with a backbone."""

    def __init__(self, folder: Path, config: FeaturesConfig) -> None:
        self._folder = folder
        self._device = find_device(config.device or "auto")
        require_device(self._device)
        tokenizer = load_tokenizer(folder)
        # reports a backbone that can't be split before the features are computed
        TrainedPart(load_classifier(folder), config.trainable_blocks, from_activations=config.cache_features)
        model = load_classifier(folder)
        longest = min(tokenizer.model_max_length, max_text_length(model) or tokenizer.model_max_length)
        if config.max_length > longest:
            raise ValueError(
                f"max_length {config.max_length} is more than the {counted(longest, 'tokens')} that the"
                f" backbone in {folder} accepts: lower it"
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

    def __reduce__(self) -> tuple[type["FeatureExtractor"], tuple[Path, FeaturesConfig]]:
        return FeatureExtractor, (self._folder, self._config)  # each process loads its own model

    def extract(self, texts: list[str]) -> tuple[dict[str, Tensor], NDArray[np.int64], int]:
        """Return the concatenated features of texts, their lengths, and the number of truncated texts."""
        encodings = self._tokenizer.encode_batch(texts)
        lengths = np.array([len(encoding.ids) for encoding in encodings])
        cut = sum(bool(encoding.overflowing) for encoding in encodings)
        ids = [torch.tensor(encoding.ids, dtype=torch.int32) for encoding in encodings]
        if not self._config.cache_features:
            return {TOKENS: torch.cat(ids)}, lengths, cut
        return {ACTIVATIONS: self._activations(ids, lengths)}, lengths, cut

    def _activations(self, ids: list[Tensor], lengths: NDArray[np.int64]) -> Tensor:
        """Compute the concatenated activations (N, D), where N is the sum of the lengths."""
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
                f"an activation is beyond the range of {self._config.dtype}: use bfloat16 or float32"
            )
        return together


class FeatureFiles:
    """The memory-mapped features in a folder, which the rows of the Parquet shards refer to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: dict[int, Tensor] = {}

    def __reduce__(self) -> tuple[type["FeatureFiles"], tuple[Path]]:
        return FeatureFiles, (self._folder,)  # each worker maps the files itself

    def read(self, shard: int, start: int, length: int) -> Tensor:
        """Return the activations (length, D) or ids (length,) of a review.

        Raises:
            OSError: the file can't be read.
        """
        if shard not in self._shards:
            path = self._folder / features_file(shard)
            try:
                (self._shards[shard],) = load_file(path).values()
            except (OSError, SafetensorError) as error:
                raise OSError(f"the features {path} can't be read ({error}): rebuild them") from error
        return self._shards[shard][start : start + length]
