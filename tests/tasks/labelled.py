"""A synthetic split of positive and negative reviews, for stages that read one."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lexloom.tasks.corpus import AsWritten
from lexloom.tasks.store.artifacts import Artifact, Store, Summary
from tests.models.tiny import WORDS

REVIEWS = 40
LABELS = ["negative", "positive"]


def write_split(store: Store, row_group: int = 16, reviews: int = REVIEWS) -> Artifact:
    """Write reviews of 1 to 20 words, labelled 0 and 1 in turn; held-out parts have a quarter as many."""
    folder = store.folder("split", "reviews")
    folder.mkdir(parents=True)
    for number, part in enumerate(("train", "validation", "test")):
        rows = range(reviews if part == "train" else reviews // 4)
        texts = [review(row, number) for row in rows]
        table = pa.table({"text": texts, "label": pa.array([row % 2 for row in rows], pa.int32())})
        pq.write_table(table, folder / f"{part}-00000.parquet", row_group_size=row_group)
    rules = AsWritten().model_dump(mode="json")
    facts: dict[str, Any] = {"labels": LABELS, "label_values": ["0", "1"], "normalization": rules}
    summary = Summary(rows_in=0, unit_in="", rows=0, unit="", facts=facts)
    return Artifact(stage="split", key="reviews", folder=folder, summary=summary)


def review(row: int, part: int) -> str:
    verdict = "good" if row % 2 else "bad"
    return " ".join([verdict, *(WORDS[(row * word + 7 * part) % 40] for word in range(row % 20))])


def texts_of(artifact: Artifact, part: str) -> list[str]:
    tables = [pq.read_table(path) for path in artifact.files(f"{part}-*.parquet")]
    return [text for table in tables for text in table["text"].to_pylist()]
