"""Tests of windows against a plain loop, their shard sizes, and reading them back."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import lexloom.tasks.store.shards
import lexloom.tasks.tokens
import lexloom.tasks.windows
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.windows import WindowsConfig, windows
from lexloom.training.stream import ShardStream

numbers = count()
TEXT = "abcdéf猫hij"  # ids 0 to 9: é (2 bytes) is 8, 猫 (3 bytes) is 9
END = 10
TOKENIZER = Tokenizer.of_characters(TEXT)
BYTES = [1] * 8 + [2, 3] + [0]

Window = tuple[int, ...]
Made = tuple[Summary, dict[str, list[Window]], Path]
texts = st.lists(st.lists(st.integers(0, END), max_size=12), min_size=1, max_size=8)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    """Run the stage on documents; return its summary, each part's windows, and their folder."""

    def run(
        train: list[list[int]],
        validation: list[list[int]] | None = None,
        shards: int = 1,
        row_group: int = 100,
        **options: Any,
    ) -> Made:
        folder = tmp_path / f"run-{next(numbers)}"
        summary = Summary(rows_in=0, unit_in="", rows=0, unit="")
        tokens = Artifact(stage="subwords", key=folder.name, folder=folder / "tokens", summary=summary)
        TOKENIZER.save(tokens.folder / "tokenizer")
        for part, documents in (("train", train), ("validation", validation)):
            for i in range(shards if documents is not None else 0):
                cut = documents[len(documents) * i // shards : len(documents) * (i + 1) // shards]
                table = pa.table({"tokens": pa.array(cut, pa.list_(pa.int32()))})
                pq.write_table(table, tokens.folder / f"{part}-{i:05d}.parquet", row_group_size=row_group)
        out = folder / "out"
        out.mkdir()
        summary = windows.function(tokens, WindowsConfig(**options), out)
        return summary, {part: read(out, part) for part in ("train", "validation")}, out

    return run


def read(out: Path, part: str) -> list[Window]:
    found = []
    for path in sorted(out.glob(f"{part}-*.parquet")):
        table = pq.read_table(path)
        found += [
            (*inputs, label)
            for inputs, label in zip(table["inputs"].to_pylist(), table["label"].to_pylist(), strict=True)
        ]
    return found


def by_hand(documents: list[list[int]], size: int, stride: int, across: bool, partial: bool) -> list[Window]:
    """Return every slice of `size` tokens that starts at a multiple of `stride`."""
    rows = [[token for document in documents for token in document]] if across else documents
    padding = [END] * (size - 1) if partial else []
    return [
        tuple(row[start : start + size])
        for row in ([*padding, *row] for row in rows)
        for start in range(0, len(row) - size + 1, stride)
    ]


# which windows


def test_a_hand_computed_sentence(make):
    summary, found, _ = make([[0, 1, 2, 3, 4], [5, 6], [7, 0, 1, 2]], [[3, 4, 5, 6]])
    assert found["train"] == [(0, 1, 2, 3), (1, 2, 3, 4), (7, 0, 1, 2)]
    assert found["validation"] == [(3, 4, 5, 6)]
    assert summary.notes == {"windows for validation": 1, "documents shorter than a window": 1}
    assert (summary.rows_in, summary.rows) == (15, 4)


def test_partial_windows_make_every_token_a_label_once(make):
    _, found, _ = make([[0, 1, 2, 3], [4], [], [5, 6]], size=3, partial=True)
    assert found["train"] == [
        *[(END, END, 0), (END, 0, 1), (0, 1, 2), (1, 2, 3)],
        (END, END, 4),
        *[(END, END, 5), (END, 5, 6)],
    ]


def test_the_windows_of_a_transformer_label_every_token_but_the_first_once(make):
    context, stream = 4, [n % 10 for n in range(22)]
    _, found, _ = make(
        [stream[:7], stream[7:8], stream[8:]], size=context + 1, stride=context, across_documents=True
    )
    assert found["train"] == [tuple(stream[start : start + 5]) for start in (0, 4, 8, 12, 16)]
    assert [token for window in found["train"] for token in window[1:]] == stream[1:21]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=texts,
    size=st.integers(2, 6),
    stride=st.integers(1, 9),
    across=st.booleans(),
    partial=st.booleans(),
    shards=st.integers(1, 3),
    tokens_per_batch=st.integers(1, 20),
    rows_per_group=st.integers(1, 9),
)
def test_windows_equal_a_plain_loop(
    make, documents, size, stride, across, partial, shards, tokens_per_batch, rows_per_group
):
    expected = by_hand(documents, size, stride, across, partial)
    if not expected:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lexloom.tasks.tokens, "TOKENS_PER_BATCH", tokens_per_batch)
        patch.setattr(lexloom.tasks.windows, "TOKENS_PER_GROUP", rows_per_group * size)
        patch.setattr(lexloom.tasks.windows, "TOKENS_PER_SHARD", 3 * rows_per_group * size)
        summary, found, out = make(
            documents,
            documents,
            shards,
            row_group=2,
            size=size,
            stride=stride,
            across_documents=across,
            partial=partial,
        )
    assert found["train"] == found["validation"] == expected
    assert summary.rows_in == 2 * sum(map(len, documents))
    assert summary.facts == {
        "windows": len(expected),
        "validation_windows": len(expected),
        "size": size,
        "validation_label_bytes": sum(BYTES[window[-1]] for window in expected),
        "validation_predicted_bytes": sum(BYTES[token] for window in expected for token in window[1:]),
    }
    short = 0 if across or partial else 2 * sum(0 < len(document) < size for document in documents)
    assert summary.notes["documents shorter than a window"] == short
    sizes = [pq.read_metadata(path).num_rows for path in sorted(out.glob("train-*"))]
    assert all(rows == 3 * rows_per_group for rows in sizes[:-1])


def test_parts_are_never_mixed(make):
    _, found, _ = make([[0, 1], [2]], [[7, 7], [7]], size=2, across_documents=True)
    assert found == {"train": [(0, 1), (1, 2)], "validation": [(7, 7), (7, 7)]}


def test_without_a_validation_part_there_are_no_windows_of_it(make):
    summary, _, out = make([[0, 1, 2, 3]])
    assert [path.name for path in out.iterdir()] == ["train-00000.parquet"]
    assert (summary.facts["validation_windows"], summary.facts["validation_label_bytes"]) == (0, 0)


# how they lie on disk


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_the_stream_reads_them_as_matrices(make, compression):
    _, found, out = make([[n % 10 for n in range(100)]], size=4, compression=compression)
    path = out / "train-00000.parquet"
    assert pq.read_metadata(path).row_group(0).column(0).compression.lower() == compression
    stream = ShardStream([path], ["inputs", "label"], batch_size=8, lanes=1, seed=0, shuffle=False)
    batches = list(stream.read(stream.epoch(0)))
    inputs = np.concatenate([batch["inputs"] for batch in batches])
    label = np.concatenate([batch["label"] for batch in batches])
    assert (inputs.shape, inputs.dtype, label.shape, label.dtype) == ((97, 3), np.int32, (97,), np.int32)
    assert np.column_stack([inputs, label]).tolist() == [list(window) for window in found["train"]]


def test_row_groups_have_one_size(make, monkeypatch):
    monkeypatch.setattr(lexloom.tasks.windows, "TOKENS_PER_GROUP", 64)
    _, _, out = make([list(range(10)) * 20], size=4)
    metadata = pq.read_metadata(out / "train-00000.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [16] * 12 + [5]


# errors


def test_a_text_without_windows_is_rejected_with_a_remedy(make):
    with pytest.raises(ValueError, match=r"no window of 4 tokens fits into the training part \(2 documents"):
        make([[0, 1], [1, 2, 3], []])
    with pytest.raises(
        ValueError, match=r"fits into the validation part \(1 document shorter.*or raise validation_share"
    ):
        make([[0, 1, 2, 3]], [[0, 1]])


@pytest.mark.parametrize("options", [{"size": 1}, {"stride": 0}, {"size": 0}, {"stride": -2}])
def test_options_out_of_bounds_are_rejected(options):
    with pytest.raises(ValidationError):
        WindowsConfig(**options)
