"""Tests of cached features against the encoder itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lexloom.models.sentiment.frozen_encoder import FrozenPart
from lexloom.models.sentiment.hf_loading import load_classifier, load_tokenizer
from lexloom.tasks import frozen_features as module
from lexloom.tasks.frozen_features import (
    FeatureFiles,
    FeaturesConfig,
    frozen_features,
    read_features_config,
    read_label_counts,
)
from lexloom.tasks.sources.backbone import Backbone, BackboneConfig, locate_backbone
from lexloom.tasks.store.artifacts import Artifact, Store
from tests.models.tiny import VOCABULARY, WIDTH, write_backbone
from tests.tasks.labelled import REVIEWS, texts_of, write_split

MAX_LENGTH = 10

Build = Callable[..., Artifact]


@pytest.fixture
def reviews(store: Store) -> Artifact:
    return write_split(store)


@pytest.fixture
def backbone(tmp_path: Path) -> Backbone:
    return locate_backbone(BackboneConfig(backbone=str(write_backbone(tmp_path / "backbone"))))


@pytest.fixture
def compute(build: Build, reviews: Artifact, backbone: Backbone, tmp_path: Path) -> Callable[..., Artifact]:
    def run(**options: Any) -> Artifact:
        config = FeaturesConfig(**{"max_length": MAX_LENGTH, "dtype": "float32"} | options)
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        return build(frozen_features, reviews, backbone, config=config, scratch=scratch)

    return run


def runs_of(artifact: Artifact, part: str) -> list[Tensor]:
    runs = FeatureFiles(artifact.folder)
    places = [
        pq.read_table(path).select(["shard", "start", "length"])
        for path in artifact.files(f"{part}-*.parquet")
    ]
    return [runs.read(*row.values()) for table in places for row in table.to_pylist()]


def expected(backbone: Backbone, texts: list[str]) -> list[Tensor]:
    """Compute the activations of one text at a time, without batches and padding."""
    frozen = FrozenPart(load_classifier(backbone.folder), 1)
    tokenizer = load_tokenizer(backbone.folder)
    ids = [tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"] for text in texts]
    return [frozen(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64))[0].clone() for row in ids]


@pytest.mark.parametrize("part", ["train", "validation"])
def test_rows_refer_to_their_own_activations(
    compute: Build, reviews: Artifact, backbone: Backbone, part: str
) -> None:
    found = runs_of(compute(), part)
    wanted = expected(backbone, texts_of(reviews, part))
    assert [run.shape for run in found] == [run.shape for run in wanted]
    for run, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(run, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.02), ("float16", 0.001)])
def test_half_precision_is_close_to_float32(compute: Build, dtype: str, error: float) -> None:
    exact, rounded = (torch.cat(runs_of(compute(dtype=name), "train")) for name in ("float32", dtype))
    assert rounded.dtype == getattr(torch, dtype)
    assert 0 < float((rounded.float() - exact).norm() / exact.norm()) < error


def test_without_a_cache_token_ids_are_kept(compute: Build, reviews: Artifact, backbone: Backbone) -> None:
    tokenizer = load_tokenizer(backbone.folder)
    found = runs_of(compute(cache_features=False), "train")
    assert [run.tolist() for run in found] == [
        tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        for text in texts_of(reviews, "train")
    ]


def test_rows_have_label_length_and_location(compute: Build) -> None:
    made = compute()
    first, *_ = made.files("train-*.parquet")
    table = pq.read_table(first).to_pydict()
    lengths = [min(MAX_LENGTH, row % 20 + 3) for row in range(16)]  # two marks, and the first word
    assert table["length"] == lengths
    assert table["start"] == [sum(lengths[:row]) for row in range(16)]
    assert table["label"] == [0, 1] * 8
    assert load_file(made.folder / "features-00000.safetensors")["activations"].shape == (sum(lengths), WIDTH)


def test_the_summary_has_counts_and_facts(compute: Build) -> None:
    made = compute()
    assert (made.facts["train"], made.facts["validation"]) == (REVIEWS, REVIEWS // 4)
    assert read_label_counts(made) == [20, 20]
    assert made.summary.rows == sum(
        len(run) for part in ("train", "validation") for run in runs_of(made, part)
    )
    longer = sum(row % 20 + 3 > MAX_LENGTH for part in (REVIEWS, REVIEWS // 4) for row in range(part))
    assert made.summary.notes == {"truncated to 10 tokens": longer}
    assert read_features_config(made) == FeaturesConfig(max_length=MAX_LENGTH, dtype="float32")


def test_finished_groups_are_kept_if_a_run_is_stopped(
    compute: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read = module.FeatureExtractor.extract
    windows: list[int] = []

    def stopped_at_the_third(self: module.FeatureExtractor, texts: list[str]) -> Any:
        windows.append(len(texts))
        if len(windows) == 3:
            raise KeyboardInterrupt
        return read(self, texts)

    monkeypatch.setattr(module.FeatureExtractor, "extract", stopped_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        compute()
    shutil.rmtree(next((tmp_path / "store" / "frozen_features").iterdir()))
    resumed = compute()
    assert windows == [16, 16, 8, 8, 10]  # the third window is done again, the first two are not
    again = runs_of(resumed, "train")
    shutil.rmtree(resumed.folder)
    for run, want in zip(again, runs_of(compute(), "train"), strict=True):
        assert torch.equal(run, want)


def test_a_run_stopped_while_moving_files_can_resume(
    compute: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    move = shutil.move

    def stopped_at_the_second(source: Path, target: Path) -> None:
        if any(target.parent.iterdir()):
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "move", stopped_at_the_second)
        patch.setattr(Path, "iterdir", lambda folder: iter(sorted(folder.glob("*"))))  # features-* come first
        with pytest.raises(KeyboardInterrupt):
            compute()
    shutil.rmtree(next((tmp_path / "store" / "frozen_features").iterdir()))
    made = compute()
    assert len(made.files("*.safetensors")) == len(made.files()) == 4
    assert len(runs_of(made, "train")) == REVIEWS


def test_the_device_is_not_part_of_the_key(reviews: Artifact, backbone: Backbone) -> None:
    keys = {
        frozen_features.key((reviews, backbone), FeaturesConfig(device=device)) for device in ("cpu", "cuda")
    }
    assert len(keys) == 1


def test_the_key_depends_on_weights_length_layer_dtype_and_cache(
    reviews: Artifact, backbone: Backbone
) -> None:
    other = backbone.model_copy(update={"digest": "another"})
    keys = {
        frozen_features.key((reviews, backbone), FeaturesConfig()),
        frozen_features.key((reviews, other), FeaturesConfig()),
        frozen_features.key((reviews, backbone), FeaturesConfig(max_length=99)),
        frozen_features.key((reviews, backbone), FeaturesConfig(trainable_blocks=2)),
        frozen_features.key((reviews, backbone), FeaturesConfig(dtype="float16")),
        frozen_features.key((reviews, backbone), FeaturesConfig(cache_features=False)),
    }
    assert len(keys) == 6


def test_more_tokens_than_the_backbone_accepts_are_rejected(compute: Build) -> None:
    with pytest.raises(ValueError, match="max_length 31 is more than the 30 tokens"):
        compute(max_length=31)


def test_positions_before_the_padding_index_are_not_used(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "roberta", "roberta", pad_token_id=1)
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    del stated["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match="max_length 31 is more than the 30 tokens"):
        module.FeatureExtractor(folder, FeaturesConfig(max_length=31))
    _, lengths, cut = module.FeatureExtractor(folder, FeaturesConfig(max_length=30)).extract(["film " * 40])
    assert (lengths.tolist(), cut) == ([30], 1)


def test_left_truncation_of_a_tokenizer_is_kept(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "left")
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**stated, "truncation_side": "left"}))
    reader = module.FeatureExtractor(folder, FeaturesConfig(max_length=8, cache_features=False))
    found, _, _ = reader.extract(["good " * 9 + "film " * 6])
    assert found["tokens"].tolist() == [VOCABULARY[word] for word in ("[CLS]", *["film"] * 6, "[SEP]")]


def test_a_missing_gpu_is_reported(compute: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="the device is cuda, but torch finds no GPU"):
        compute(device="cuda")


def test_an_impossible_split_of_the_backbone_is_rejected_early(compute: Build) -> None:
    with pytest.raises(ValueError, match="trainable_blocks is 9, but the encoder has 3 blocks"):
        compute(trainable_blocks=9)


def test_float16_overflow_is_rejected(compute: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrozenPart, "forward", lambda self, ids, mask: torch.full((*ids.shape, WIDTH), 1e5))
    with pytest.raises(OverflowError, match="beyond the range of float16: use bfloat16"):
        compute(dtype="float16")


def test_a_damaged_feature_file_is_rejected(compute: Build) -> None:
    made = compute()
    (made.folder / "features-00000.safetensors").write_bytes(b"no tensors")
    with pytest.raises(OSError, match=r"features-00000.safetensors can't be read .*rebuild them"):
        FeatureFiles(made.folder).read(0, 0, 1)
