"""Labels as text, read the same way from every format.

Labels are not parsed as numbers: `01` and `1e3` are kept. The exception is whole numbers that a library wrote
as decimals, as pandas does in a column with missing values: 4.0 becomes the label `4`.

Missing labels are null, NaN, an empty or blank cell, and a negative number in a column of class numbers,
since data sets on the Hugging Face Hub use -1.
"""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

HUB_METADATA = b"huggingface"  # in the schema of a data set of the Hugging Face hub
WHOLE_AS_DECIMAL = r"^(-?[1-9][0-9]*|0)\.0+$"
NAN = r"^(NaN|nan)$"
MAX_EXACT_INTEGER = 1 << 53  # not every larger integer is a double

WRITTEN_AS_DECIMALS = "labels like 4.0 read as 4"
NEGATIVE_CLASSES = "negative class labels treated as missing"
NAN_CELLS = "NaN cells treated as missing"


def from_values(values: pa.Array, names: list[str] | None) -> tuple[pa.StringArray, Counter[str]] | None:
    """Convert a column of numbers or booleans to labels; None if the column has another type.

    `names` are the class names of the numbers, from 0.
    """
    notes = Counter[str]()
    kind = values.type
    if pa.types.is_decimal(kind):
        return without_decimals(values.cast(pa.string()), notes), notes
    if pa.types.is_floating(kind):
        values = values.cast(pa.float64())
        values = pc.if_else(pc.is_nan(values), None, values)
        exact = pc.and_(pc.equal(values, pc.trunc(values)), pc.less(pc.abs(values), MAX_EXACT_INTEGER))
        whole = pc.if_else(exact, values, None).cast(pa.int64())
        notes[WRITTEN_AS_DECIMALS] += len(whole) - whole.null_count
        return pc.coalesce(whole.cast(pa.string()), values.cast(pa.string())), notes
    if pa.types.is_integer(kind):
        if names is not None:
            values = null_where(pc.less(values, 0), values, NEGATIVE_CLASSES, notes)
        return values.cast(pa.string()), notes
    return (values.cast(pa.string()), notes) if pa.types.is_boolean(kind) or pa.types.is_null(kind) else None


def from_cells(labels: pa.StringArray) -> tuple[pa.StringArray, Counter[str]]:
    """Convert the cells of a table without types to labels: blank cells and NaN become null."""
    notes = Counter[str]()
    labels = null_where(pc.match_substring_regex(labels, NAN), without_blanks(labels), NAN_CELLS, notes)
    return without_decimals(labels, notes), notes


def without_blanks(labels: pa.StringArray) -> pa.StringArray:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(labels), ""), pa.scalar(None, pa.string()), labels)


def without_decimals(labels: pa.StringArray, notes: Counter[str]) -> pa.StringArray:
    """Remove the decimals of whole numbers, and count the altered labels."""
    altered = pc.sum(pc.match_substring_regex(labels, WHOLE_AS_DECIMAL)).as_py()
    if not altered:
        return labels
    notes[WRITTEN_AS_DECIMALS] += altered
    return pc.replace_substring_regex(labels, WHOLE_AS_DECIMAL, r"\1")


def null_where(mask: pa.BooleanArray, labels: pa.Array, reason: str, notes: Counter[str]) -> pa.Array:
    """Replace the labels where `mask` is true by null, and count them."""
    notes[reason] += pc.sum(mask).as_py() or 0
    return pc.if_else(mask, pa.scalar(None, labels.type), labels)


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Read the class names of a label column from the metadata of a Hub data set; None without them."""
    try:
        described = json.loads(schema.metadata[HUB_METADATA])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return described if isinstance(described, list) and all(isinstance(n, str) for n in described) else None
