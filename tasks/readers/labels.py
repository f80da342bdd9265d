"""The labels of a source, as text: what the file says, in every format.

`01` and `1e3` stay as they are; nothing is read as a number. The exception are whole numbers that a library
wrote as decimals, as pandas does in a column with gaps: 4.0 is the label `4`.

No label are null, NaN, an empty or blank cell, and what the Hugging Face hub writes for it: -1 (or any
other negative number) in a column whose numbers stand for class names.
"""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

HUB_METADATA = b"huggingface"  # in the schema of a data set of the Hugging Face hub
WHOLE_AS_DECIMAL = r"^(-?[1-9][0-9]*|0)\.0+$"
NAN = r"^(NaN|nan)$"
MOST_EXACT = 1 << 53  # beyond it not every whole number is a double

WRITTEN_AS_DECIMALS = "labels like 4.0 read as 4"
NEGATIVE_CLASSES = "negative class labels read as no label"
NAN_CELLS = "NaN cells read as no label"


def from_values(values: pa.Array, names: list[str] | None) -> tuple[pa.StringArray, Counter[str]] | None:
    """The labels of a column of numbers or booleans; None where the column is of another type.

    names: what the numbers are called, from 0 on.
    """
    notes = Counter[str]()
    kind = values.type
    if pa.types.is_decimal(kind):
        return without_decimals(values.cast(pa.string()), notes), notes
    if pa.types.is_floating(kind):
        values = values.cast(pa.float64())
        values = pc.if_else(pc.is_nan(values), None, values)
        exact = pc.and_(pc.equal(values, pc.trunc(values)), pc.less(pc.abs(values), MOST_EXACT))
        whole = pc.if_else(exact, values, None).cast(pa.int64())
        notes[WRITTEN_AS_DECIMALS] += len(whole) - whole.null_count
        return pc.coalesce(whole.cast(pa.string()), values.cast(pa.string())), notes
    if pa.types.is_integer(kind):
        if names is not None:
            values = null_where(pc.less(values, 0), values, NEGATIVE_CLASSES, notes)
        return values.cast(pa.string()), notes
    return (values.cast(pa.string()), notes) if pa.types.is_boolean(kind) or pa.types.is_null(kind) else None


def from_cells(labels: pa.StringArray) -> tuple[pa.StringArray, Counter[str]]:
    """The labels of a table without types: blank cells and NaN are null."""
    notes = Counter[str]()
    labels = null_where(pc.match_substring_regex(labels, NAN), without_blanks(labels), NAN_CELLS, notes)
    return without_decimals(labels, notes), notes


def without_blanks(labels: pa.StringArray) -> pa.StringArray:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(labels), ""), pa.scalar(None, pa.string()), labels)


def without_decimals(labels: pa.StringArray, notes: Counter[str]) -> pa.StringArray:
    """Whole numbers without the decimals that a library gave them."""
    altered = pc.sum(pc.match_substring_regex(labels, WHOLE_AS_DECIMAL)).as_py()
    if not altered:
        return labels
    notes[WRITTEN_AS_DECIMALS] += altered
    return pc.replace_substring_regex(labels, WHOLE_AS_DECIMAL, r"\1")


def null_where(mask: pa.BooleanArray, labels: pa.Array, reason: str, notes: Counter[str]) -> pa.Array:
    """The labels, null where `mask` is true; these are counted."""
    notes[reason] += pc.sum(mask).as_py() or 0
    return pc.if_else(mask, pa.scalar(None, labels.type), labels)


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """What a label column's numbers are called, where the data set says so (the hub's in their metadata)."""
    try:
        described = json.loads(schema.metadata[HUB_METADATA])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return described if isinstance(described, list) and all(isinstance(n, str) for n in described) else None
