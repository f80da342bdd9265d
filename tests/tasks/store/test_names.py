"""Names of models: which are valid, what they refer to, and what they survive."""

import json
import shutil
import threading
from datetime import datetime
from pathlib import Path

import pytest

from lexloom.deployments.cli.main import main
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.garbage_collection import collect_garbage
from lexloom.tasks.store.layout import BUILDING
from lexloom.tasks.store.lookup import find_model_folder, find_place
from lexloom.tasks.store.names import (
    NAMES_FILE,
    Naming,
    base_name,
    check_name,
    name_by_default,
    name_model,
    names_of,
    read_names,
)
from tests.deployments.store import shelve

STAGE, OTHER_STAGE = "train_word2vec", "train_sentiment"
A, B = (STAGE, "a" * 24), (STAGE, "b" * 24)
TODAY = f"{datetime.now():%Y-%m-%d}"


@pytest.fixture(autouse=True)
def two_models(store: Store) -> None:
    shelve(store, *A)
    shelve(store, *B, day=2)


@pytest.mark.parametrize("name", ["a", "books-2026-11-30", "V1.0_final", "7", "x" * 64, "beef", "a" * 23])
def test_valid_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "-x",
            "_x",
            ".hidden",
            "a/b",
            "../a",
            "a b",
            "a\n",
            "a\0",
            "é",
            "<b>",
            "a'b",
            "a\\b",
        ),
        *("a&b", "x" * 65, "latest", "Latest", "0123456789abcdef01234567"),
    ],
)
def test_names_that_are_unsafe_or_mean_something_else_are_refused(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match=r"^must"):
        name_model(store, A, name)
    assert not (store.root / NAMES_FILE).exists()


def test_a_model_may_have_several_names_and_the_last_one_is_shown_first(store: Store) -> None:
    for name in ("first", "second", "first"):
        assert name_model(store, A, name) == Naming(name)
    assert names_of(A, read_names(store)) == ["first", "second"]
    assert find_model_folder("second", STAGE) == store.folder(*A)


def test_a_name_moves_to_the_model_that_is_given_it(store: Store) -> None:
    name_model(store, A, "production")
    assert name_model(store, B, "production") == Naming("production", moved_from=A)
    assert find_place(store, "production") == B
    assert names_of(A, read_names(store)) == []
    shutil.rmtree(store.folder(*B))
    assert name_model(store, A, "production") == Naming("production"), "the model that had it is gone"


def test_default_names_have_a_date_and_a_number(store: Store) -> None:
    assert name_by_default(store, A, "sotu").name == f"sotu-{TODAY}"
    assert name_by_default(store, B, "sotu").name == f"sotu-{TODAY}-2"
    assert name_by_default(store, (OTHER_STAGE, "c"), "sotu").name == f"sotu-{TODAY}-3"
    assert name_by_default(store, A, "other").name == f"sotu-{TODAY}", "a model keeps its name"
    name_model(store, A, "production")
    assert name_by_default(store, A, "sotu").name == "production"


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("sotu", "sotu"),
        ("books/", "books"),
        ("books/Moby Dick, vol. 2.txt.gz", "moby-dick-vol-2"),
        ("logs/*.jsonl.zst", "logs"),
        ("a.txt and 1,234 more", "a"),
        ("hf:stanfordnlp/imdb@main:plain:test", "imdb"),
        ("Crème brûlée.csv", "creme-brulee"),
        ("x" * 300, "x" * 40),
        ("<script>.txt", "script"),
        ("/home/ann/Война и мир.txt", "word2vec"),
        ("-", "word2vec"),
        (".", "word2vec"),
        ("*.txt", "word2vec"),
        ("/", "word2vec"),
        (None, "word2vec"),
    ],
)
def test_the_default_name_is_that_of_the_source(source: str | None, base: str) -> None:
    assert base_name(source, "word2vec") == base
    check_name(f"{base}-2026-11-30-1000")


def test_runs_that_name_models_at_once_get_different_names(store: Store) -> None:
    given: list[str] = []
    runs = [
        threading.Thread(
            target=lambda key=f"k{n}": given.append(name_by_default(store, (STAGE, key), "s").name)
        )
        for n in range(16)
    ]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert sorted(given) == sorted([f"s-{TODAY}", *(f"s-{TODAY}-{n}" for n in range(2, 17))])
    assert set(read_names(store)) == set(given)
    assert list((store.root / BUILDING).iterdir()) == []


def test_names_survive_garbage_collection_verification_and_copies(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name_model(store, A, "old")
    name_model(store, B, "new")
    collect_garbage(store, keep=1)
    assert main(["store", "verify"]) == 0
    assert capsys.readouterr().out == "1 intact, 0 damaged, 0 outdated\n"
    shutil.copytree(store.root, tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    monkeypatch.setenv("LEXLOOM_STORE", str(tmp_path / "copy"))
    (kept,) = [path.name for path in (tmp_path / "copy" / STAGE).iterdir()]
    assert find_model_folder("new" if kept == B[1] else "old", STAGE) == tmp_path / "copy" / STAGE / kept


def test_the_name_of_a_removed_model_stands_for_it_again_once_it_is_rebuilt(store: Store) -> None:
    name_model(store, A, "production")
    shutil.rmtree(store.folder(*A))
    with pytest.raises(FileNotFoundError, match=r"the model production is no longer in the store .*: run"):
        find_model_folder("production", STAGE)
    shelve(store, *A)
    assert find_model_folder("production", STAGE) == store.folder(*A)


def test_garbage_collection_says_which_names_it_removes(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        name_model(store, A, name)
    assert main(["store", "gc", "--keep", "0", "--dry-run"]) == 0
    assert f"{STAGE}/{A[1]} (two, one)\n" in capsys.readouterr().out


DAMAGED = [
    "",
    "[]",
    '{"names": {"a": 1}}',
    '{"names": {"<b>": {"stage": "s", "key": "k", "given": "2020-01-01T00:00:00Z"}}}',
    '{"names": {"a": {"stage": "..", "key": "k", "given": "2020-01-01T00:00:00Z"}}}',
    '{"names": {"a": {"stage": "s", "key": "k/../..", "given": "2020-01-01T00:00:00Z"}}}',
    '{"names": {"a": {"stage": "s", "key": "k", "given": "2020-01-01T00:00:00"}}}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_of_names_is_reported_and_kept(store: Store, content: str) -> None:
    (store.root / NAMES_FILE).write_text(content)
    for use in (lambda: name_model(store, A, "x"), lambda: find_place(store, "x")):
        with pytest.raises(ValueError, match=r"names.json is damaged: restore it from a backup, or"):
            use()
    assert (store.root / NAMES_FILE).read_text() == content


def test_the_file_is_json_with_the_time_of_each_name(store: Store) -> None:
    name_model(store, A, "x")
    saved = json.loads((store.root / NAMES_FILE).read_text())
    assert saved["format"] == 1
    assert saved["names"]["x"] | {"given": ""} == {"stage": STAGE, "key": A[1], "given": ""}


# lookup


def test_a_model_is_found_by_a_unique_prefix_of_its_name(store: Store) -> None:
    name_model(store, A, "sotu-2026-11-30")
    name_model(store, A, "sotu-best")
    name_model(store, B, "books")
    for name in ("sotu", "sotu-2026-11-30", f"{STAGE}/sotu-b", "aaaa"):
        assert find_place(store, name, STAGE) == A
    assert find_place(store, "b" * 4) == B


def test_an_ambiguous_prefix_lists_the_names(store: Store) -> None:
    name_model(store, A, "sotu-2026-11-30")
    name_model(store, B, "sotu-2026-11-30-2")
    with pytest.raises(
        ValueError,
        match=r"sotu is ambiguous \(sotu-2026-11-30 or sotu-2026-11-30-2\): specify more",
    ):
        find_place(store, "sotu", STAGE)
    assert find_place(store, "sotu-2026-11-30", STAGE) == A, "a whole name takes precedence"
    name_model(store, A, "bb")
    with pytest.raises(ValueError, match=rf"b is ambiguous \(bb or {STAGE}/b{{8}}\)"):
        find_place(store, "b", STAGE)
    assert find_place(store, "bb", STAGE) == A, "also before a prefix of a key"


def test_a_name_of_another_kind_of_model_says_so(store: Store) -> None:
    name_model(store, A, "words")
    with pytest.raises(ValueError, match="words is train_word2vec/aaaaaaaa, but this command needs a train"):
        find_model_folder("words", OTHER_STAGE)


def test_a_name_takes_precedence_over_a_path_but_a_prefix_does_not(store: Store, tmp_path: Path) -> None:
    name_model(store, A, "demo")
    for folder in ("demo", "dem"):
        (tmp_path / folder).mkdir()
    assert find_model_folder("demo", STAGE) == store.folder(*A)
    assert find_model_folder("./demo", STAGE) == Path("demo")
    assert find_model_folder("dem", STAGE) == Path("dem")
    shutil.rmtree(store.folder(*A))
    assert find_model_folder("demo", STAGE) == Path("demo"), "the named model is gone"
