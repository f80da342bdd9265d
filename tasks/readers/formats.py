"""Reads documents out of text, JSON lines, CSV and Parquet files, and says what is wrong with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from lexloom.tasks.readers.csv_files import read_csv
from lexloom.tasks.readers.json_files import read_json_lines
from lexloom.tasks.readers.parquet_files import read_parquet
from lexloom.tasks.readers.raw import Options, Raw
from lexloom.tasks.readers.streams import COMPRESSIONS, split_name
from lexloom.tasks.readers.text_files import read_text

FORMATS = {".txt": read_text, ".jsonl": read_json_lines, ".csv": read_csv, ".parquet": read_parquet}
SUPPORTED = f"supported are {', '.join(FORMATS)}, each also as {' or '.join(COMPRESSIONS)}"


def is_supported(path: Path) -> bool:
    return split_name(path)[0] in FORMATS


def is_text(path: Path) -> bool:
    """Whether it is plain text, which has no columns."""
    return split_name(path)[0] == ".txt"


def read(path: Path, options: Options) -> Iterator[Raw]:
    """The documents of one file, in order. ValueError or OSError where it can't be read."""
    with damage(path):
        yield from FORMATS[split_name(path)[0]](path, options)


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Arrow's errors about broken files, as one sentence with the file's name."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # no such file, no rights: says so itself
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged or cut short ({reason}): copy or download it again") from error
