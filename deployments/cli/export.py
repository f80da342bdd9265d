"""`lexloom export`: write a model in the file format of another tool."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lexloom.deployments.cli.models import Model
from lexloom.flows.command import relative_to_here
from lexloom.models.registry import families, find_exporter
from lexloom.tasks.display.console import warn
from lexloom.tasks.display.formatting import size
from lexloom.tasks.store.lookup import find_model_folder


def export(
    model: Model, /, *, to: Annotated[str, Parameter(metavar="FORMAT")], output: Path | None = None
) -> None:
    """Export a model to the file format of another tool.

    Args:
        to: Format: gguf (llama.cpp, Ollama) for a transformer; word2vec or word2vec-text (gensim, fastText)
            for word vectors.
        output: File to write, which must not exist (default: the model's key with the suffix of the format).
    """
    formats = [name for family in families().values() for name in family.exports]
    if to not in formats:
        raise ValueError(f"there is no export format {to!r}: use {', '.join(formats)}")
    stages = [family.stage for family in families().values()]
    if model.rpartition("/")[2] == "latest":  # the latest one that can be exported
        stages = [family.stage for family in families().values() if to in family.exports]
    folder = find_model_folder(model, *stages)
    family = find_exporter(folder, to)
    file = output or Path(f"{folder.resolve().name}{family.exports[to]}")
    if file.exists():
        raise FileExistsError(f"{file} already exists: remove it, or choose another file with --output")
    if not file.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder {file.parent} does not exist: create it, or choose another file")
    with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.absolute().parent) as building:
        written = Path(building) / file.name
        notes = family.export(folder, to, written)
        os.replace(written, file)
    for note in notes:
        warn(note)
    print(f"{relative_to_here(file)}  {size(file.stat().st_size)}")
