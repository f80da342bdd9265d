"""Tests of labels in all formats and column types."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lexloom.tasks.readers.formats import read
from lexloom.tasks.readers.labels import NAN_CELLS, NEGATIVE_CLASSES, WRITTEN_AS_DECIMALS
from lexloom.tasks.readers.raw import ReadOptions

NAN = float("nan")


def found(path: Path) -> tuple[list[str | None], dict[str, int]]:
    """Read a file's labels, and the counts of altered ones."""
    labels, notes = list[str | None](), Counter[str]()
    for raw in read(path, ReadOptions(label_column="label")):
        assert raw.labels is not None
        assert raw.labels.type == pa.string()
        labels += raw.labels.to_pylist()
        notes += raw.notes
    return labels, dict(notes)


def in_csv(folder: Path, cells: Sequence[str]) -> Path:
    (folder / "x.csv").write_text("text,label\n" + "".join(f"a,{cell}\n" for cell in cells))
    return folder / "x.csv"


def in_json(folder: Path, values: Sequence[str]) -> Path:
    (folder / "x.jsonl").write_text("".join(f'{{"text": "a", "label": {value}}}\n' for value in values))
    return folder / "x.jsonl"


def in_parquet(folder: Path, labels: pa.Array, names: list[str] | None = None) -> Path:
    table = pa.table({"text": ["a"] * len(labels), "label": labels})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        described = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": described})
    pq.write_table(table, folder / "x.parquet")
    return folder / "x.parquet"


@pytest.mark.parametrize(
    ("cells", "expected", "notes"),
    [
        (["01", "1", "001"], ["01", "1", "001"], {}),
        (["1e3", "1000", "0x10"], ["1e3", "1000", "0x10"], {}),
        (["+1", "-1"], ["+1", "-1"], {}),
        (["True", "false"], ["True", "false"], {}),
        (["4.0", "", "-5.0"], ["4", None, "-5"], {WRITTEN_AS_DECIMALS: 2}),
        (["4.5", "1.10", "01.0"], ["4.5", "1.10", "01.0"], {}),
        (["NaN", "nan", "NA", "None"], [None, None, "NA", "None"], {NAN_CELLS: 2}),
        (["pos", "", "  ", '""', '" "'], ["pos", None, None, None, None], {}),
        (["1" + "0" * 20, "9" * 5000], ["1" + "0" * 20, "9" * 5000], {}),
        (["3", "three"], ["3", "three"], {}),
    ],
)
def test_csv_cells_are_labels(
    cells: list[str], expected: list[str | None], notes: dict[str, int], tmp_path: Path
) -> None:
    assert found(in_csv(tmp_path, cells)) == (expected, notes)


@pytest.mark.parametrize(
    ("values", "expected", "notes"),
    [
        (["1", "0", "-1", "null"], ["1", "0", "-1", None], {}),
        (['"01"', '"4.0"', '"NaN"'], ["01", "4.0", "NaN"], {}),
        (["true", "false", "null"], ["true", "false", None], {}),
        (["4.0", "NaN", "5"], ["4", None, "5"], {WRITTEN_AS_DECIMALS: 1}),
        (["1e3", "2.5"], ["1e3", "2.5"], {}),
        (["1", '"1"', "true", '"x"'], ["1", "1", "true", "x"], {}),
        (['""', '" "', '"x"'], [None, None, "x"], {}),
        (["1" + "0" * 20, "-" + "9" * 5000], ["1" + "0" * 20, "-" + "9" * 5000], {}),
    ],
)
def test_json_values_are_labels(
    values: list[str], expected: list[str | None], notes: dict[str, int], tmp_path: Path
) -> None:
    assert found(in_json(tmp_path, values)) == (expected, notes)


def test_json_labels_may_change_type_between_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexloom.tasks.readers.text_files.BLOCK_BYTES", 64)
    values = ["1"] * 9 + ["true"] * 9 + ['"x"'] * 9 + ["2.0"] * 9 + ["3"] * 9
    labels, notes = found(in_json(tmp_path, values))
    assert labels == ["1"] * 9 + ["true"] * 9 + ["x"] * 9 + ["2"] * 9 + ["3"] * 9
    assert notes == {WRITTEN_AS_DECIMALS: 9}


@pytest.mark.parametrize(
    ("labels", "expected", "whole"),
    [
        (pa.array([-1, 1, None]), ["-1", "1", None], 0),
        (pa.array([1 << 63], pa.uint64()), [str(1 << 63)], 0),
        (pa.array([4.0, NAN, None, -0.0]), ["4", None, None, "0"], 2),
        (pa.array([3.5, 4.0, 1e300]), ["3.5", "4", "1e+300"], 1),
        (pa.array([1.5, 1.0], pa.float32()), ["1.5", "1"], 1),
        (pa.array([np.float16(2)]), ["2"], 1),
        (pa.array([Decimal("4.00"), Decimal("4.25")]), ["4", "4.25"], 1),
        (pa.array([True, False, None]), ["true", "false", None], 0),
        (pa.array(["", " ", "01", "4.0"]), [None, None, "01", "4.0"], 0),
        (pa.array(["", "x"], pa.large_string()), [None, "x"], 0),
        (pa.array([b"", b"x"]), [None, "x"], 0),
        (pa.array(["", "x"]).dictionary_encode(), [None, "x"], 0),
        (pa.array([4, None]).dictionary_encode(), ["4", None], 0),
        (pa.nulls(2), [None, None], 0),
    ],
)
def test_parquet_values_are_labels(
    labels: pa.Array, expected: list[str | None], whole: int, tmp_path: Path
) -> None:
    notes = {WRITTEN_AS_DECIMALS: whole} if whole else {}
    assert found(in_parquet(tmp_path, labels)) == (expected, notes)


def test_negative_class_numbers_of_the_hub_are_missing_labels(tmp_path: Path) -> None:
    labels = pa.array([0, -1, 1, None])
    path = in_parquet(tmp_path, labels, ["negative", "positive"])
    assert found(path) == (["0", None, "1", None], {NEGATIVE_CLASSES: 1})
    assert found(in_parquet(tmp_path, labels)) == (["0", "-1", "1", None], {})


@pytest.mark.parametrize("labels", [[[1]], [{"a": 1}], [datetime(2020, 1, 1)]])
def test_label_columns_of_other_types_are_rejected(labels: list[Any], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"column 'label' of .*x\.parquet is .*: a label must be a string, a number or"
    ):
        found(in_parquet(tmp_path, pa.array(labels)))
