"""`lexloom models`: list the models in the store."""

import json as jsons

from rich.cells import cell_len, set_cell_size

from lexloom.tasks.display.formatting import size
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.file_access import printable
from lexloom.tasks.store.model_list import ListedModel, list_models

COLUMNS = ("NAME", "KIND", "SOURCE", "TRAINED", "SIZE", "RESULT")
RIGHT = 4  # the right-aligned column
GAP = "  "


def models(*, json: bool = False) -> None:
    """List the models in the store, newest first.

    A model without a name is listed by a prefix of its key.

    Args:
        json: Print one JSON array.
    """
    store = Store()
    found = list_models(store)
    if json:
        print(jsons.dumps([model.model_dump(mode="json") for model in found], ensure_ascii=False))
    elif found:
        print("\n".join(table_lines([COLUMNS, *map(row, found)])))
    else:
        print(f"there are no models in {store.root}: train one, for example with `lexloom word2vec`")


def row(model: ListedModel) -> tuple[str, ...]:
    return (
        ", ".join(model.names) or model.name,
        model.title,
        printable(model.source or "–"),
        f"{model.created.astimezone():%Y-%m-%d %H:%M}",
        size(model.bytes),
        model.figure,
    )


def table_lines(rows: list[tuple[str, ...]]) -> list[str]:
    """Format rows as aligned columns."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [
        GAP.join(
            cell.rjust(width) if place == RIGHT else set_cell_size(cell, width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
