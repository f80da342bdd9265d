"""What a stage reads is what was written: damaged bytes never go into an artifact that counts as whole."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from lexloom.tasks.embeddings import EmbeddingsConfig, locate_embeddings
from lexloom.tasks.sources.source import find_source
from lexloom.tasks.store.artifacts import Artifact, Store, Summary
from lexloom.tasks.store.file_access import digest_file
from lexloom.tasks.store.lineage import Call, check_inputs, find_outdated_input
from lexloom.tasks.store.stage import Stage, StageRecord, record_stages, stage
from lexloom.tasks.store.verify import verify
from tests.tasks.plain import call_stage
from tests.tasks.store.test_artifacts import read, write

ONE = Summary(rows_in=1, unit_in="files", rows=1, unit="files")


class Text(BaseModel):
    key: str = "hello"


class Config(BaseModel):
    width: int = 1


def copy(out: Path, *inputs: Path, width: int) -> Summary:
    for name in ("one.txt", "two.txt"):
        (out / name).write_text("".join((folder / name).read_text() for folder in inputs) * width)
    return ONE


@stage(version=1)
def corpus(source: Text, config: Config, out: Path) -> Summary:
    for name in ("one.txt", "two.txt"):
        (out / name).write_text(f"{source.key} {name} ")
    return ONE


@stage(version=1)
def words(corpus: Artifact, config: Config, out: Path) -> Summary:
    return copy(out, corpus.folder, width=config.width)


@stage(version=1)
def ids(corpus: Artifact, words: Artifact, config: Config, out: Path) -> Summary:
    return copy(out, corpus.folder, words.folder, width=config.width)


@stage(version=1)
def model(ids: Artifact, words: Artifact, config: Config, out: Path) -> Summary:
    return copy(out, ids.folder, words.folder, width=config.width)


STAGES = ("corpus", "words", "ids", "model")


@pytest.fixture(autouse=True)
def without_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stage, "__call__", call_stage)


def run(**widths: int) -> dict[str, StageRecord]:
    """Run four stages, each reading the previous ones; return their records."""
    config = {name: Config(width=widths.get(name, 1)) for name in STAGES}
    with record_stages() as records:
        text = corpus(Text(), config=config["corpus"])
        vocabulary = words(text, config=config["words"])
        tokens = ids(text, vocabulary, config=config["ids"])
        model(tokens, vocabulary, config=config["model"])
    assert [record.stage for record in records] == list(STAGES)
    return {record.stage: record for record in records}


def built(records: dict[str, StageRecord]) -> list[str]:
    return [name for name, record in records.items() if not record.cached]


def content(store: Store) -> dict[str, str]:
    """Return the content of all artifact files except manifests."""
    return {
        path.relative_to(store.root).as_posix(): path.read_text()
        for path in sorted(store.root.glob("[!.]*/*/*.txt"))
    }


def flip(path: Path) -> None:
    """Change a byte, but not the size or modification time."""
    status = path.stat()
    path.write_text("X" + path.read_text()[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def to_format_1(store: Store) -> None:
    """Convert all manifests to format 1, without the content of inputs."""
    for manifest in store.manifests():
        values = json.loads(manifest.to_json())
        del values["digest"]
        for entry in values["inputs"]:
            entry["content"] = ""
        path = store.folder(manifest.stage, manifest.key) / "manifest.json"
        path.write_text(json.dumps({**values, "format": 1}))


def injuries() -> Iterator[tuple[str, str, str]]:
    for damaged in STAGES[:-1]:
        for name in ("one.txt", "two.txt"):
            for changed in STAGES[STAGES.index(damaged) + 1 :]:
                yield damaged, name, changed


@pytest.mark.parametrize(("damaged", "name", "changed"), list(injuries()))
def test_damaged_inputs_are_never_read(store: Store, damaged: str, name: str, changed: str) -> None:
    run()
    run(**{changed: 2})
    clean = content(store)
    for manifest in store.manifests():
        if manifest.stage == changed and manifest.config["width"] == 2:
            store.discard(changed, manifest.key)
    flip(next(store.root.glob(f"{damaged}/*/{name}")))
    records = run(**{changed: 2})
    assert changed in built(records)
    read_by = {"corpus": ("words", "ids"), "words": ("ids", "model"), "ids": ("model",)}[damaged]
    if changed in read_by:
        assert records[damaged].why == [f"rebuilt: {name} does not match its digest"]
        assert content(store) == clean
    else:
        assert records[damaged].cached, "nothing has read it"
        assert sum(content(store)[path] != clean[path] for path in clean) == 1


def test_a_cached_run_reads_no_files(store: Store) -> None:
    run()
    flip(next(store.root.glob("ids/*/one.txt")))
    assert built(run()) == []


def test_rebuilding_the_same_bytes_keeps_descendants(store: Store) -> None:
    run()
    next(store.root.glob("corpus/*/one.txt")).unlink()
    assert built(run()) == ["corpus"]


def test_rebuilding_other_bytes_rebuilds_descendants(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    monkeypatch.setattr(words, "function", lambda corpus, config, out: copy(out, corpus.folder, width=3))
    flip(next(store.root.glob("words/*/one.txt")))
    records = run(model=2)
    assert built(records) == ["words", "ids", "model"]
    key = records["words"].key
    assert records["ids"].why == [
        f"rebuilt: its input words/{key[:8]} was rebuilt later with different content"
    ]
    assert all(find_outdated_input(store, each.stage, each.key) is None for each in records.values())
    records = run()
    assert built(records) == ["model"], "it had read the other words"
    assert built(run()) == []


def test_artifacts_of_format_1_are_rebuilt_if_older_than_their_parent(store: Store) -> None:
    run()
    to_format_1(store)
    assert built(run()) == []
    flip(next(store.root.glob("words/*/one.txt")))
    assert built(run(ids=2)) == ["words", "ids", "model"]
    to_format_1(store)
    records = run()
    assert built(records) == ["ids", "model"], "they may have read what was damaged"
    assert "was rebuilt later, possibly with different content" in records["ids"].why[0]


def test_a_damaged_input_of_another_run_is_rejected(store: Store) -> None:
    with record_stages():
        text = corpus(Text(), config=Config())
    flip(text.folder / "one.txt")
    with pytest.raises(ValueError, match=r"corpus/\w{8} can't be used \(one.txt does not match its digest"):
        words(text, config=Config())
    assert not list(store.root.glob("words/*"))
    assert not list(store.root.glob(".building/*"))


def test_a_disk_that_damages_every_write_fails_the_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with record_stages():
        text = corpus(Text(), config=Config())
        monkeypatch.setattr(Store, "find_damage", lambda *arguments: "one.txt is gone")
        with pytest.raises(OSError, match="damaged again right after it was rebuilt: check the disk"):
            check_inputs(store, (text,), {("corpus", text.key): Call((), lambda reason: None)})


@pytest.mark.parametrize("how", ["damaged", "built again"])
def test_an_input_that_changes_during_a_build_fails_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def reads_slowly(corpus: Artifact, config: Config, out: Path) -> Summary:
        made = copy(out, corpus.folder, width=1)
        flip(corpus.folder / "two.txt")
        if how == "built again":
            manifest = read(corpus)
            manifest.files[1].xxh3 = digest_file(corpus.folder / "two.txt")
            write(store, manifest)
        return made

    monkeypatch.setattr(words, "function", reads_slowly)
    with pytest.raises(OSError, match=r"corpus/\w{8} changed while words read it .*: rerun the command"):
        run()
    assert not list(store.root.glob("words/*"))


def test_replacing_an_input_by_the_same_content_during_a_build_is_harmless(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads_slowly(corpus: Artifact, config: Config, out: Path) -> Summary:
        made = copy(out, corpus.folder, width=1)
        shutil.copytree(corpus.folder, "twin")
        store.discard("corpus", corpus.key)
        shutil.copytree("twin", corpus.folder)
        return made

    monkeypatch.setattr(words, "function", reads_slowly)
    assert built(run()) == list(STAGES)


@pytest.mark.parametrize("left", ["verified", "before inputs were recorded"])
def test_scratch_files_are_reused_only_with_the_same_input_content(
    store: Store, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    @stage(version=1)
    def pieces(words: Artifact, config: Config, out: Path, scratch: Path) -> Summary:
        if not (scratch / "piece").exists():
            (scratch / "piece").write_text((words.folder / "one.txt").read_text())
            raise KeyError("interrupted")
        (out / "whole.txt").write_text((scratch / "piece").read_text())
        return ONE

    def attempt() -> Artifact:
        with record_stages():
            return pieces(words(corpus(Text(), config=Config()), config=Config()), config=Config())

    with pytest.raises(KeyError):
        attempt()
    if left == "verified":
        assert (attempt().folder / "whole.txt").read_text() == "hello one.txt "
        store.discard("pieces", attempt().key)
        with pytest.raises(KeyError):
            attempt()
        monkeypatch.setattr(words, "function", lambda corpus, config, out: copy(out, corpus.folder, width=2))
        next(store.root.glob("words/*/two.txt")).unlink()
    else:
        next(store.root.glob(".scratch/*/inputs.json")).unlink()
    with pytest.raises(KeyError):
        attempt()
    expected = next(store.root.glob("words/*/one.txt")).read_text()
    assert (attempt().folder / "whole.txt").read_text() == expected


# sources


def test_a_source_is_verified_against_its_digests(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one")
    os.utime(path, (1e9, 1e9))
    text = find_source("text.txt")
    flip(path)
    with pytest.raises(ValueError, match=r"text.txt has changed since it was fingerprinted"):
        check_inputs(store, (text,), {})
    assert find_source("text.txt").key != text.key, "a file that was written has another time of change"


def test_an_embedding_table_is_verified_against_its_digest(tmp_path: Path, store: Store) -> None:
    (tmp_path / "vectors.txt").write_text("2 1\none 0.5\ntwo 0.5\n")
    table = locate_embeddings(EmbeddingsConfig(source="vectors.txt"))
    check_inputs(store, (table,), {})
    flip(tmp_path / "vectors.txt")
    with pytest.raises(ValueError, match=r"vectors.txt has changed since it was fingerprinted"):
        check_inputs(store, (table,), {})


# store verify


def found(store: Store) -> dict[str, str]:
    return {
        each.name.partition("/")[0]: each.damage or f"outdated: {each.outdated}"
        for each in verify(store, store.list_places())
        if each.damage or each.outdated
    }


def test_verification_reports_damage_and_possibly_affected_artifacts(store: Store) -> None:
    run()
    assert found(store) == {}
    flip(next(store.root.glob("corpus/*/one.txt")))
    assert found(store) == {"corpus": "one.txt does not match its digest"}
    to_format_1(store)
    said = found(store)
    assert set(said) == {"corpus", "words", "ids", "model"}
    for name in ("words", "ids"):
        assert "is damaged, and may already have been when it was read" in said[name]
    assert said["model"].endswith(" is outdated")


def test_verification_reports_artifacts_built_from_other_content(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = run()
    monkeypatch.setattr(words, "function", lambda corpus, config, out: copy(out, corpus.folder, width=3))
    (store.folder("words", records["words"].key) / "one.txt").unlink()
    with record_stages():
        words(corpus(Text(), config=Config()), config=Config())
    name = f"words/{records['words'].key[:8]}"
    assert found(store) == {
        "ids": f"outdated: its input {name} was rebuilt later with different content",
        "model": f"outdated: its input ids/{records['ids'].key[:8]} is outdated",
    }
    run()
    assert found(store) == {}
