"""Tests of the reasons why a stage ran."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from lexloom.tasks.evaluate.word2vec import EvaluateConfig, locate_sets
from lexloom.tasks.sources.source import FileSource, find_source
from lexloom.tasks.store.artifacts import Artifact, InputEntry, Manifest, Store, Summary
from lexloom.tasks.store.explain import Change, compare_files, explain_change, new_reasons
from lexloom.tasks.store.stage import Stage, make_input_entry, record_stages, stage
from tests.tasks.plain import call_stage
from tests.tasks.store.test_artifacts import put

ONE = Summary(rows_in=1, unit_in="files", rows=1, unit="files")


def why(manifest: Manifest, others: list[Manifest]) -> list[str]:
    return [change.text for change in explain_change(manifest, others)]


def test_a_change_is_traced_to_the_field(store: Store) -> None:
    old = put(store, "tokens", "t1", inputs=[put(store, "corpus", "c1", limit=5, lower=1)])
    new = put(store, "tokens", "t2", inputs=[put(store, "corpus", "c2", limit=7, lower=1)])
    first, second = store.manifest("tokens", old.key), store.manifest("tokens", new.key)
    assert first is not None
    assert second is not None
    manifests = list(store.manifests())
    assert why(first, manifests) == ["no earlier artifact of this stage"]
    assert why(second, manifests) == ["corpus.limit: 5 -> 7"]


def test_artifacts_with_inputs_of_other_stages_are_not_compared(store: Store) -> None:
    put(store, "evaluate", "e1", inputs=[put(store, "word2vec", "w1", dim=5)])
    other = put(store, "evaluate", "e2", inputs=[put(store, "transformer", "t1", layers=3)])
    manifest = store.manifest("evaluate", other.key)
    assert manifest is not None
    assert why(manifest, list(store.manifests())) == ["no earlier artifact of this stage"]


def test_an_input_of_another_stage_is_not_compared_field_by_field(store: Store) -> None:
    models = [
        put(store, "model", key, inputs=[put(store, stage, f"{key}-{stage}", window=5)])
        for key, stage in (("m1", "pairs"), ("m2", "tokens"))
    ]
    for number, model in enumerate(models):
        put(store, "report", f"r{number}", inputs=[model])
    manifests = list(store.manifests())
    for manifest in manifests:
        if manifest.stage == "model":
            manifest.inputs[0].name = "examples"
    second = next(manifest for manifest in manifests if manifest.key == "r1")
    assert why(second, manifests) == ["model's examples: pairs -> tokens"]


def test_an_input_that_was_removed_is_reported_as_different(store: Store) -> None:
    old = put(store, "corpus", "c1", limit=5)
    put(store, "tokens", "t1", inputs=[old])
    put(store, "tokens", "t2", inputs=[put(store, "corpus", "c2", limit=7)])
    store.discard("corpus", "c1")
    (manifest,) = [each for each in store.manifests() if each.key == "t2"]
    said = ["different corpus (the earlier artifact is no longer in the store)"]
    assert why(manifest, list(store.manifests())) == said


# files of a source


DIGESTS = {"a.txt": "1", "b.txt": "2", "c.txt": "3"}


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (DIGESTS | {"x.txt": "4"}, "1 file added: x.txt"),
        (DIGESTS | {"a.txt": "9", "c.txt": "9"}, "2 files changed: a.txt, c.txt"),
        ({"a.txt": "1", "b.txt": "2"}, "1 file removed: c.txt"),
        ({"d.txt": "3"}, "1 file added: d.txt; 3 files removed: a.txt, b.txt, c.txt"),
        (
            DIGESTS | {f"{n:04d}": "" for n in range(2000)},
            "2,000 files added: 0000, 0001, 0002 and 1,997 more",
        ),
        (DIGESTS | {"a\nb": "5"}, r"1 file added: a\nb"),
        (DIGESTS | {"caf\udce9": "5"}, r"1 file added: caf\xe9"),
        (DIGESTS, ""),
    ],
)
def test_changed_source_files_are_listed(new: dict[str, str], said: str) -> None:
    assert "; ".join(change.text for change in compare_files(DIGESTS, new)) == said


class Config(BaseModel):
    width: int = 1


@stage(version=1)
def loom(source: FileSource, config: Config, out: Path) -> Summary:
    (out / "cloth.txt").write_text(source.key * config.width)
    return ONE


@stage(version=1)
def dye(cloth: Artifact, config: Config, out: Path) -> Summary:
    (out / "dyed.txt").write_text((cloth.folder / "cloth.txt").read_text().upper() * config.width)
    return ONE


@pytest.fixture
def without_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stage, "__call__", call_stage)


@pytest.fixture
def run(
    without_prefect: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Run both stages on a folder of files; return the printed lines that begin with "because"."""
    folder = tmp_path / "books"
    folder.mkdir()

    def both(files: dict[str, str], loom_width: int = 1, dye_width: int = 1) -> list[str]:
        for path in folder.iterdir():
            path.unlink()
        for name, text in files.items():
            (folder / name).write_text(text)
        capsys.readouterr()
        with record_stages():
            dye(loom(find_source("books"), config=Config(width=loom_width)), config=Config(width=dye_width))
        return [line.strip() for line in capsys.readouterr().err.splitlines() if "because" in line]

    return both


FILES = {"a.txt": "one", "b.txt": "two"}


def test_a_reason_is_printed_by_the_first_affected_stage_only(run: Any, store: Store) -> None:
    assert run(FILES) == []
    assert run(FILES | {"x.txt": "new"}) == ["because 1 file added: x.txt"]
    assert run(FILES, loom_width=2) == ["because loom.width: 1 -> 2"]
    assert run(FILES, loom_width=3, dye_width=2) == [
        "because loom.width: 2 -> 3",
        "because dye.width: 1 -> 2",
    ]
    (last,) = [each for each in store.manifests() if each.config == {"width": 2} and each.stage == "dye"]
    assert last.why == ["dye.width: 1 -> 2", "loom.width: 2 -> 3"], "the store keeps all of it"


def test_a_stage_after_a_cached_one_prints_the_reason(run: Any, store: Store) -> None:
    run(FILES)
    run(FILES, loom_width=2)
    for manifest in store.manifests():
        if manifest.stage == "dye" and manifest.why != ["no earlier artifact of this stage"]:
            store.discard("dye", manifest.key)
    assert run(FILES, loom_width=2) == ["because loom.width: 1 -> 2"]


def test_the_most_similar_earlier_artifact_is_compared(run: Any) -> None:
    many = {f"{number}.txt": "text" for number in range(9)}
    run(many)
    run(FILES, loom_width=7)
    assert run(many | {"x.txt": "new"}) == ["because 1 file added: x.txt"]
    assert run(many, loom_width=7) == ["because loom.width: 1 -> 7"]
    assert run({**many, "0.txt": "another", "1.txt": "another"}) == ["because 2 files changed: 0.txt, 1.txt"]
    assert run({"8.txt": "text"}) != []


def test_digests_are_never_shown(store: Store) -> None:
    entries = [
        InputEntry(name="source", stage="", key=key, description={"name": "books", "digest": key})
        for key in ("k1", "k2")
    ]
    manifests = []
    for number, entry in enumerate(entries):
        put(store, "corpus", f"c{number}")
        manifest = next(each for each in store.manifests() if each.key == f"c{number}")
        manifests.append(manifest.model_copy(update={"inputs": [entry]}))
    assert why(manifests[1], manifests) == ["the content of the source has changed"]


def test_changed_evaluation_sets_are_listed_by_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("a b 1\n")
    config = EvaluateConfig(similarity=[Path("pairs.tsv")], analogies=[])
    old = make_input_entry(store, "sets", locate_sets(config))
    (tmp_path / "pairs.tsv").write_text("a b 2\n")
    new = make_input_entry(store, "sets", locate_sets(config))
    assert [change.text for change in compare_files(old.files, new.files)] == ["1 file changed: pairs"]


def test_changes_through_an_explained_input_are_not_repeated() -> None:
    changes = [
        Change("pairs.window: 3 -> 8", frozenset({"p"})),
        Change("train.epochs: 1 -> 2"),
        Change("corpus.limit: 5 -> 7", frozenset({"c"})),
    ]
    assert new_reasons(changes, {"p": ["pairs.window: 5 -> 8"]}) == [
        "train.epochs: 1 -> 2",
        "corpus.limit: 5 -> 7",
    ]
    assert new_reasons(changes, {"x": ["corpus.limit: 5 -> 7"]}) == [
        "pairs.window: 3 -> 8",
        "train.epochs: 1 -> 2",
    ]
