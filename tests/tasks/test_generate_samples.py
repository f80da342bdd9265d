"""Samples of a language model: they are never empty without a note."""

import json
from collections.abc import Callable

import pytest

from lexloom.tasks import generate_samples as module
from lexloom.tasks.display.console import describe
from lexloom.tasks.generate_samples import SamplesConfig, generate_samples
from lexloom.tasks.store.artifacts import Artifact, Store, Summary
from tests.models.silent import silent_model


@pytest.mark.parametrize("stop_at_end", [False, True])
def test_empty_samples_are_counted(
    build: Callable[..., Artifact], store: Store, monkeypatch: pytest.MonkeyPatch, stop_at_end: bool
) -> None:
    monkeypatch.setattr(module, "load_language_model", lambda folder: silent_model())
    folder = store.folder("train_transformer", "key")
    folder.mkdir(parents=True)
    summary = Summary(rows_in=1, unit_in="rows", rows=1, unit="rows")
    model = Artifact(stage="train_transformer", key="key", folder=folder, summary=summary)
    config = SamplesConfig(prompts=["The", ""], tokens=5, stop_at_end=stop_at_end)
    made = build(generate_samples, model, config=config)
    written = json.loads((made.folder / "samples.json").read_text())["samples"]
    assert written == [{"prompt": "The", "text": ""}, {"prompt": "", "text": ""}]
    assert describe(made.summary) == "2 prompts → 0 characters · 2 prompts without generated text"
