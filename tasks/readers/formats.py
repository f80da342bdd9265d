"""Reads the documents of text, JSON lines, CSV and Parquet files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from lexloom.tasks.readers.csv_files import read_csv
from lexloom.tasks.readers.json_files import read_json_lines
from lexloom.tasks.readers.parquet_files import read_parquet
from lexloom.tasks.readers.raw import RawBatch, ReadOptions
from lexloom.tasks.readers.streams import COMPRESSIONS, split_name
from lexloom.tasks.readers.text_files import read_text

FORMATS = {".txt": read_text, ".jsonl": read_json_lines, ".csv": read_csv, ".parquet": read_parquet}
SUPPORTED = f"supported formats are {', '.join(FORMATS)}, also as {' or '.join(COMPRESSIONS)}"


def is_supported(path: Path) -> bool:
    return split_name(path)[0] in FORMATS


def is_text(path: Path) -> bool:
    """Return whether a file is plain text, which has no columns."""
    return split_name(path)[0] == ".txt"


def read(path: Path, options: ReadOptions) -> Iterator[RawBatch]:
    """Read the documents of one file, in order; raise ValueError or OSError if it can't be read."""
    with explain_damage(path):
        yield from FORMATS[split_name(path)[0]](path, options)


@contextmanager
def explain_damage(path: Path) -> Iterator[None]:
    """Translate Arrow's errors about damaged files into one sentence with the file's name."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own error, such as a missing file, is clear enough
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged or truncated ({reason}): copy or download it again") from error
