"""Tests of text formats: equal documents from all formats, and clear errors for damaged files."""

import csv
import gzip
import io
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import zstandard

from lexloom.tasks.readers import csv_dialects, parquet_files, text_files
from lexloom.tasks.readers import formats as readers
from lexloom.tasks.readers.csv_dialects import Dialect
from lexloom.tasks.readers.formats import read
from lexloom.tasks.readers.raw import InvalidText, RawBatch, ReadOptions, decode

DOCUMENTS = ["the first", "über allen Gipfeln", 'says "no", twice', "война и мир"]
LABELS = [0, 1, 1, 0]
EVERYTHING = ReadOptions()
WITH_LABELS = ReadOptions(label_column="label")


def as_text(path: Path) -> None:
    path.write_text("".join(f"{text}\n" for text in DOCUMENTS))


def as_json_lines(path: Path) -> None:
    rows = [{"label": label, "text": text} for text, label in zip(DOCUMENTS, LABELS, strict=True)]
    path.write_text("".join(json.dumps(row, ensure_ascii=row["label"] == 0) + "\n" for row in rows))


def as_csv(path: Path) -> None:
    pyarrow.csv.write_csv(pa.table({"label": LABELS, "text": DOCUMENTS}), path)


def as_parquet(path: Path) -> None:
    pq.write_table(pa.table({"label": LABELS, "text": DOCUMENTS}), path, row_group_size=3)


WRITERS = {".txt": as_text, ".jsonl": as_json_lines, ".csv": as_csv, ".parquet": as_parquet}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


def texts(path: Path, options: ReadOptions = EVERYTHING, invalid: InvalidText = "refuse") -> list[str | None]:
    return [text for raw in read(path, options) for text in decode(raw, invalid)[0].to_pylist()]


def labels(path: Path, options: ReadOptions = WITH_LABELS) -> list[str | None]:
    return [label for raw in read(path, options) for label in some(raw.labels).to_pylist()]


def some(array: pa.Array | None) -> pa.Array:
    assert array is not None
    return array


def file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", readers.FORMATS)
def test_all_formats_yield_the_same_documents(kind: str, packing: str, tmp_path: Path) -> None:
    plain = tmp_path / f"plain{kind}"
    WRITERS[kind](plain)
    packed = file(tmp_path, f"packed{kind}{packing}", PACKERS[packing](plain.read_bytes()))
    assert texts(packed) == DOCUMENTS
    if kind != ".txt":
        assert labels(packed) == [str(label) for label in LABELS]


@pytest.mark.parametrize("kind", [".gz", ".zst"])
def test_a_truncated_archive_is_rejected(kind: str, tmp_path: Path) -> None:
    packed = PACKERS[kind](bytes(range(256)).hex().encode() * 3)
    path = file(tmp_path, f"cut.txt{kind}", packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=rf"cut\.txt\{kind} is damaged or truncated.*download it again"):
        texts(path)


def test_a_file_that_is_not_an_archive_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no\.txt\.gz is damaged"):
        texts(file(tmp_path, "no.txt.gz", b"plain text"))


def test_a_truncated_parquet_file_is_rejected(tmp_path: Path) -> None:
    as_parquet(tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    for size in (0, 3, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match=r"cut\.parquet is damaged or truncated"):
            texts(file(tmp_path, "cut.parquet", data[:size]))


def test_parquet_with_damaged_pages_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    pq.write_table(pa.table({"text": [str(n) for n in range(9999)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[200:2000] = bytes(1800)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged\.parquet is damaged or truncated"):
        texts(path)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_repetitive_parquet_is_read_in_bounded_memory(kind: pa.DataType, tmp_path: Path) -> None:
    long = pa.array(["a" * (1 << 17), "b"]).cast(kind)
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 1000 + [None, 1], pa.int32()), long)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": rows, "label": range(1002)}), path, store_schema=False)
    assert path.stat().st_size < 1 << 20
    sizes, last = [], None
    for raw in read(path, EVERYTHING):
        sizes.append((len(raw.text), raw.text.nbytes))
        last = raw.text[-1].as_py()
    assert sum(rows for rows, _ in sizes) == 1002
    assert max(size for _, size in sizes) < 2 * parquet_files.MAX_BATCH_BYTES
    assert last in ("b", b"b")


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_an_unknown_column_is_rejected_with_the_existing_ones(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / f"x{kind}")
    with pytest.raises(ValueError, match=r"no column 'body': it has 'label', 'text'"):
        texts(tmp_path / f"x{kind}", ReadOptions(text_column="body"))


def test_plain_text_has_no_labels(tmp_path: Path) -> None:
    as_text(tmp_path / "x.txt")
    with pytest.raises(ValueError, match=r"x\.txt is plain text and has no column 'label'"):
        texts(tmp_path / "x.txt", ReadOptions(label_column="label"))


@pytest.mark.parametrize("values", [[1, 2], [[1.5], [2.5]], [True, False]])
def test_a_text_column_of_another_type_is_rejected(values: list, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": values}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"column 'text' of .*x\.parquet is .*, not text"):
        texts(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())],
)
def test_all_arrow_string_types_are_read(kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", None, "ö"]).cast(kind)}), tmp_path / "x.parquet")
    assert texts(tmp_path / "x.parquet") == ["a", None, "ö"]


def test_a_null_column_has_missing_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "x.parquet")
    assert texts(tmp_path / "x.parquet") == [None, None, None]


# text


def test_all_line_endings_are_recognized(tmp_path: Path) -> None:
    assert texts(file(tmp_path, "x.txt", b"\xef\xbb\xbfone\r\ntwo\n\nfour")) == ["one", "two", "", "four"]
    assert texts(file(tmp_path, "x.txt", b"one\rtwo\r\rfour\r")) == ["one", "two", "", "four"]
    assert texts(file(tmp_path, "x.csv", b"text,n\rone,1\rtwo,2\r")) == ["one", "two"]
    assert texts(file(tmp_path, "x.jsonl", b'{"text": "one"}\r{"text": "two"}\r')) == ["one", "two"]


def test_lines_are_whole_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 7)
    assert texts(file(tmp_path, "x.txt", b"a\r\n" * 9 + "größer als ein Block\n".encode() + b"end")) == [
        *["a"] * 9,
        "größer als ein Block",
        "end",
    ]


@pytest.mark.parametrize("block", [5, 1 << 20])
def test_paragraphs_are_separated_by_empty_lines(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block)
    path = file(tmp_path, "x.txt", b"\n\none\ntwo\n \t\nthree\r\n\r\n\r\nfour\nfive")
    assert texts(path, ReadOptions(documents="paragraph")) == ["one\ntwo", "three", "four\nfive"]


@pytest.mark.parametrize("block", [4, 7, 30, 1 << 20])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_can_be_one_document(
    block: int, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block)
    text = "\n  Wir äßen süße Öläpfel,\n\nund 漢字漢字漢字漢字 dazu.\n"
    path = file(tmp_path, "x.txt", text.replace("\n", end).encode())
    raws = list(read(path, ReadOptions(documents="file")))
    assert "".join(text for raw in raws for text in decode(raw, "refuse")[0].to_pylist()) == text
    assert [raw.unfinished for raw in raws] == [True] * (len(raws) - 1) + [False]
    assert len(raws) > 2 or block > 30


def test_errors_name_the_first_line_of_a_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (3, 1 << 20):
        monkeypatch.setattr(text_files, "BLOCK_BYTES", block)
        path = file(tmp_path, "x.txt", b" \n\na\nb\n\n \t\n\nc\n\nd\n  \n")
        raws = list(read(path, ReadOptions(documents="paragraph")))
        assert [raw.where(row).split()[-1] for raw in raws for row in range(len(raw.text))] == [
            "3",
            "8",
            "10",
        ]
        assert texts(path, ReadOptions(documents="paragraph")) == ["a\nb", "c", "d"]


def test_an_overlong_line_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 16)
    monkeypatch.setattr(text_files, "MAX_RECORD_BYTES", 64)
    for name in ("x.txt", "x.jsonl"):
        with pytest.raises(ValueError, match=r"line 2: this document is longer than .* MB: split it"):
            texts(file(tmp_path, name, b'{"text": "a"}\n' + b"x" * 100))
    with pytest.raises(ValueError, match="line 1: this document is longer"):
        texts(file(tmp_path, "p.txt", b"short line\n" * 10), ReadOptions(documents="paragraph"))


# UTF-8


def test_invalid_utf8_is_rejected_with_its_location(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.txt, line 3, byte 5: not UTF-8 \(0xff\), probably "):
        texts(file(tmp_path, "x.txt", b"one\ntwo\nfour\xff\nfive\n"))
    with pytest.raises(ValueError, match=r"p\.txt, line 4, byte 7: not UTF-8"):
        texts(file(tmp_path, "p.txt", b"a\nb\n\nc\nfour\xff\n"), ReadOptions(documents="paragraph"))
    with pytest.raises(ValueError, match=r"x\.csv, row 3, byte 1: not UTF-8"):
        texts(file(tmp_path, "x.csv", b"text\none\n\xe4\n"))
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2, byte 2: not UTF-8"):
        texts(file(tmp_path, "x.jsonl", b'{"text": "one"}\n{"text": "a\xe4"}\n'))


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl", "x.parquet"])
def test_invalid_utf8_is_replaced_or_dropped_on_request(name: str, tmp_path: Path) -> None:
    rows = [b"good", b"a\xe4", b"fine"]
    path = tmp_path / name
    if name == "x.parquet":
        pq.write_table(pa.table({"text": pa.array(rows)}), path)
    elif name == "x.jsonl":
        path.write_bytes(b"".join(b'{"text": "' + row + b'"}\n' for row in rows))
    else:
        path.write_bytes(b"\n".join([b"text", *rows]) if name == "x.csv" else b"\n".join(rows))
    assert texts(path, invalid="replace") == ["good", "a\ufffd", "fine"]
    assert texts(path, invalid="drop") == ["good", None, "fine"]
    counts = [decode(raw, "drop")[1] for raw in read(path, ReadOptions())]
    assert sum(counts, Counter()) == {"not UTF-8": 1}


RUSSIAN = ["Привет, мир", "вторая строка текста"]
FRENCH = ["Il était une fois", "le café du château"]


def encoded(folder: Path, name: str, lines: list[str], encoding: str) -> Path:
    content = "\n".join([*(["text"] if name == "x.csv" else []), *lines])
    if name == "x.jsonl":
        content = "\n".join(json.dumps({"text": line}, ensure_ascii=False) for line in lines)
    elif name == "x.csv":
        content = content.replace("Привет, мир", '"Привет, мир"')
    return file(folder, name, content.encode(encoding))


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_names_the_encoding(encoding: str, name: str, tmp_path: Path) -> None:
    path = encoded(tmp_path, name, RUSSIAN, encoding)
    assert texts(path) == texts(path, ReadOptions(encoding="latin-1")) == RUSSIAN


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl"])
@pytest.mark.parametrize(
    ("encoding", "lines"),
    [
        *[(name, RUSSIAN) for name in ("windows-1251", "koi8-r", "utf-16-le", "utf-16-be", "utf-32-be")],
        *[(name, FRENCH) for name in ("latin-1", "utf-16-le", "utf-32-le")],
        ("windows-1252", ["“quoted” café", "plain"]),
    ],
)
def test_another_encoding_is_guessed_and_read_with_the_flag(
    encoding: str, lines: list[str], name: str, tmp_path: Path
) -> None:
    path = encoded(tmp_path, name, lines, encoding)
    with pytest.raises(ValueError, match=rf"x\..*set --text-encoding {encoding}") as refusal:
        texts(path)
    assert "drop" not in str(refusal.value)
    assert texts(path, ReadOptions(encoding=encoding)) == lines


def test_an_unknown_encoding_is_requested(tmp_path: Path) -> None:
    lines = ["日本語のテキスト", "です"]
    path = encoded(tmp_path, "x.txt", lines, "shift_jis")
    with pytest.raises(ValueError, match=r"not UTF-8 \(0x93\): convert the file, or set its encoding"):
        texts(path)
    assert texts(path, ReadOptions(encoding="shift_jis")) == lines


def test_dropping_is_suggested_if_few_documents_are_invalid(tmp_path: Path) -> None:
    path = file(tmp_path, "x.txt", b"a line\n" * 50 + b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"line 51, byte 4: .*latin-1, or set --invalid-utf8 to"):
        texts(path)


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl", "x.parquet"])
def test_a_nul_byte_is_rejected_with_its_location(name: str, tmp_path: Path) -> None:
    rows = ["fine", "b\0d"]
    if name == "x.parquet":
        pq.write_table(pa.table({"text": rows}), tmp_path / name)
    elif name == "x.jsonl":
        file(tmp_path, name, b'{"text": "fine"}\n{"text": "b\\u0000d"}\n')
    else:
        file(tmp_path, name, "\n".join([*(["text"] if name == "x.csv" else []), *rows]).encode())
    with pytest.raises(
        ValueError, match=rf"{name}, (line|row) [23], byte 2: a NUL byte, which text can't contain"
    ):
        texts(tmp_path / name)
    assert texts(tmp_path / name, invalid="drop") == ["fine", None]


def test_bytes_outside_an_encoding_are_invalid(tmp_path: Path) -> None:
    path = file(tmp_path, "x.txt", b"good\na\x81b\n")
    with pytest.raises(ValueError, match=r"line 2, byte 2: not windows-1252 \(0x81\): convert"):
        texts(path, ReadOptions(encoding="windows-1252"))
    assert texts(path, ReadOptions(encoding="windows-1252"), invalid="replace") == ["good", "a\ufffdb"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le"])
def test_utf8_declared_as_another_encoding_is_rejected(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"x\.txt is UTF-8, not {encoding}: omit --text-encoding"):
        texts(encoded(tmp_path, "x.txt", RUSSIAN, "utf-8"), ReadOptions(encoding=encoding))


def test_text_that_ends_inside_a_character_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.txt is not valid utf-16-le \(truncated data\)"):
        texts(file(tmp_path, "x.txt", "ab".encode("utf-16")[:-1]))


# JSON lines


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "a"', r"line 3 is not JSON"),
        (b'{"text": "a"} {"text": "b"}', r"line 3 is not JSON"),
        (b'["a"]', r"line 3 is not a JSON object"),
        (b"[" * 100_000, r"line 3 is not JSON"),
        (b'{"text": 7}', r"line 3: 'text' is 7, but it must be a string"),
        (b'{"text": ["a"]}', r"line 3: 'text' is a list, but it must be a string"),
        (b'{"text": 7.5, "label": 1}', r"line 3: 'text' is 7\.5, but it must be a string"),
        (b'{"text": "a", "label": {"b": 1}}', r"line 3: 'label' is an object, but a label must be"),
    ],
)
def test_a_malformed_json_line_is_rejected(line: bytes, complaint: str, tmp_path: Path) -> None:
    path = file(tmp_path, "x.jsonl", b'{"text": "fine", "label": 1}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"x\.jsonl, {complaint}"):
        texts(path, ReadOptions(label_column="label"))


def test_json_lines_without_the_text_are_null(tmp_path: Path) -> None:
    path = file(tmp_path, "x.jsonl", b'{"text": "a"}\n\n{"text": null}\n{"other": 1}\n')
    assert texts(path) == ["a", None, None]


def test_a_key_may_be_missing_in_any_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 64)
    rows = [{"id": 1}] * 20 + [{"text": "a", "label": "x"}] + [{"text": "b"}, {"label": None}]
    path = file(tmp_path, "x.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert texts(path) == [None] * 20 + ["a", "b", None]
    assert labels(path, ReadOptions(label_column="label")) == [None] * 20 + ["x", None, None]
    with pytest.raises(ValueError, match=r"x\.jsonl has no column 'body': it has 'id'"):
        texts(path, ReadOptions(text_column="body"))


def test_a_label_column_may_be_all_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": pa.nulls(1)}), tmp_path / "x.parquet")
    assert labels(tmp_path / "x.parquet", ReadOptions(label_column="label")) == [None]


def test_lists_are_rejected_as_text_and_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [[1]]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"column 'label' of .*x\.parquet is list.*: a label must be"):
        texts(tmp_path / "x.parquet", ReadOptions(label_column="label"))
    path = file(tmp_path, "x.jsonl", b'{"text": "a", "label": [1]}\n')
    with pytest.raises(ValueError, match=r"line 1: 'label' is a list, but a label must be"):
        texts(path, ReadOptions(label_column="label"))
    assert texts(file(tmp_path, "y.jsonl", b'{"text": "a", "other": [1, {"b": 2}]}\n')) == ["a"]


def test_a_lone_surrogate_is_not_utf8(tmp_path: Path) -> None:
    path = file(tmp_path, "x.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n{"text": "\\ud83d\\ude00"}\n')
    with pytest.raises(ValueError, match="line 2, byte 1: not UTF-8"):
        texts(path)
    assert texts(path, invalid="drop") == ["a", None, "😀"]


# CSV


def test_cells_may_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = file(tmp_path, "x.csv", b'id,text\n1,"a, ""b""\nc"\n2,\n')
    assert texts(path) == ['a, "b"\nc', ""]


def test_a_csv_row_with_too_few_cells_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.csv, line 3: 1 column, but the header names 2"):
        texts(file(tmp_path, "x.csv", b"text,label\na,1\nb\nc,3\n"))


def test_an_unterminated_csv_row_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_dialects, "MAX_RECORD_BYTES", 1 << 10)
    path = file(tmp_path, "x.csv", b'text,label\na,1\n"b,1\n' + b"c,1\n" * 999)
    with pytest.raises(
        ValueError, match=r"x\.csv, line 3: this row is longer .* or a quote in it is never closed"
    ):
        texts(path)


def test_an_empty_csv_has_no_documents(tmp_path: Path) -> None:
    assert texts(file(tmp_path, "x.csv", b"")) == texts(file(tmp_path, "y.csv", b"\n \r\n")) == []


def csv_file(folder: Path, text: str) -> Path:
    return file(folder, "x.csv", text.encode())


def written(rows: list[str], **dialect: Any) -> str:
    """Write a table of `text` and `n` with Python's csv module."""
    out = io.StringIO()
    writer = csv.writer(out, **{"lineterminator": "\n", **dialect})
    writer.writerow(["text", "n"])
    writer.writerows([text, n] for n, text in enumerate(rows))
    return out.getvalue()


CELLS = [
    *('She said "no" and left', "a, b; c|d", "two\nlines", "C:\\new\\", "it's", "", '"', '"so" he said, so'),
    *('"so" he said', "\\\\server\\x", " ", '\\"', 'a, "b"'),
]


@pytest.mark.parametrize(
    "dialect",
    [
        {},
        {"delimiter": ";"},
        {"delimiter": "\t"},
        {"delimiter": "|", "quoting": csv.QUOTE_ALL},
        {"quotechar": "'", "quoting": csv.QUOTE_ALL},
        {"escapechar": "\\", "doublequote": False},
        {"escapechar": "\\", "doublequote": False, "quoting": csv.QUOTE_ALL, "delimiter": ";"},
        {"lineterminator": "\r\n", "quoting": csv.QUOTE_NONNUMERIC},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 7, 1 << 22])
def test_every_dialect_is_read_back(
    dialect: dict[str, Any], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_dialects, "SCAN_BYTES", max(64, size))
    rewrite = csv_dialects.QuoteRewriter._rewritten

    def in_parts(self: csv_dialects.QuoteRewriter, data: bytes) -> bytes:
        return b"".join(rewrite(self, data[start : start + size]) for start in range(0, len(data), size))

    monkeypatch.setattr(csv_dialects.QuoteRewriter, "_rewritten", in_parts)
    assert texts(csv_file(tmp_path, written(CELLS, **dialect))) == CELLS


def test_quotes_escaped_by_spark_are_read(tmp_path: Path) -> None:
    """Spark escapes quotes only, and keeps other backslashes."""
    rows = r"""text,n
"She said \"no\" and left",1
"a, \"b\"",2
C:\new\table,3
"C:\new, \\server",4
"ends in \\",5
"""
    assert texts(csv_file(tmp_path, rows)) == [
        'She said "no" and left',
        'a, "b"',
        r"C:\new\table",
        r"C:\new, \\server",
        "ends in \\",
    ]


def test_an_escape_late_in_the_file_is_detected(tmp_path: Path) -> None:
    rows = "text,n\n" + '"plain, text",1\n' * 300_000 + '"a \\"b\\" c",2\n'
    assert texts(csv_file(tmp_path, rows))[-1] == 'a "b" c'


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (
            'text,n\na,1\n"x\\",",a"\n',
            r", line 3: a backslash before a quote may escape it or end the cell: set",
        ),
        ("text,n\n'a',1\n'b',2\n", r", line 2: single quotes around cells may be .*: set --csv-quote"),
        ('text,n\n"a" b,1\n', r", line 2: text follows a closing quote: .*--csv-quote none"),
        ('text,n\na,1\n"b,2\nc,3\n', r", line 3: a quote opened here is never closed"),
        ("text,n\na,1\n\nb,2,3\n", r", line 4: 3 columns, but the header names 2"),
        ('text,n\n"two\nlines",1\nb\n', r", line 4: 1 column, but the header names 2"),
        ("text,text\na,b\n", r" has 2 columns named 'text': rename"),
    ],
)
def test_ambiguous_or_broken_csv_is_rejected_with_the_line(rows: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"x\.csv{complaint}"):
        texts(csv_file(tmp_path, rows))


def test_a_given_dialect_is_used(tmp_path: Path) -> None:
    ambiguous = csv_file(tmp_path, 'text,n\n"x\\",",a"\n')
    for doubled in ("none", '"'):
        assert texts(ambiguous, ReadOptions(csv=Dialect(escape=doubled))) == ["x\\"]
    assert texts(ambiguous, ReadOptions(csv=Dialect(escape="\\"))) == ['x",']
    single = csv_file(tmp_path, "text,n\n'a',1\n")
    assert texts(single, ReadOptions(csv=Dialect(quote="'"))) == ["a"]
    assert texts(single, ReadOptions(csv=Dialect(quote='"'))) == ["'a'"]
    assert texts(csv_file(tmp_path, 'text,n\n"a" b,1\n'), ReadOptions(csv=Dialect(quote="none"))) == ['"a" b']
    assert texts(csv_file(tmp_path, "text#n\na, b#1\n"), ReadOptions(csv=Dialect(delimiter="#"))) == ["a, b"]
    unquoted = csv_file(tmp_path, "text,n\na\\, b,1\n")
    assert texts(unquoted, ReadOptions(csv=Dialect(quote="none", escape="\\"))) == ["a, b"]


# memory and time


class Endless:
    """An infinite stream that fails if too much of it is read."""

    def __init__(self, head: bytes, body: bytes, most: int) -> None:
        self.head, self.body, self.most, self.given = head, body, most, 0

    def read(self, size: int) -> bytes:
        data, self.head = self.head, b""
        data = (data + self.body * (size // len(self.body) + 1))[:size]
        self.given += size
        assert self.given <= self.most
        return data


@pytest.mark.parametrize(
    ("cell", "body"),
    [
        *((cell, body) for cell in (b'"', b"", b"'") for body in (b"a", b",", b"\\", b'a""')),
        (b'"', b"a, b\n"),
    ],
)
def test_an_endless_row_is_rejected_early(cell: bytes, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_dialects, "SCAN_BYTES", 1 << 12)
    monkeypatch.setattr(csv_dialects, "MAX_RECORD_BYTES", 1 << 16)

    @contextmanager
    def endless() -> Iterator[Endless]:
        yield Endless(b"text,label\nfine,1\n" + cell, body, 1 << 18)

    with pytest.raises(ValueError, match=r"x\.csv, line 3: this row is longer than 0 MB"):
        csv_dialects.find_dialect(endless, "x.csv", Dialect(), ["text"])


def test_a_row_of_many_megabytes_is_read_whole(tmp_path: Path) -> None:
    cells = ["a", 'b "c"\n' * 1_500_000, "d"]
    for dialect in ({}, {"escapechar": "\\", "doublequote": False}):
        assert texts(csv_file(tmp_path, written(cells, **dialect))) == cells


def test_memory_of_a_long_paragraph_depends_on_bytes_not_lines(tmp_path: Path) -> None:
    path = file(tmp_path, "x.txt", b"ab\n" * (4 << 20))
    tracemalloc.start()
    assert [len(text or "") for text in texts(path, ReadOptions(documents="paragraph"))] == [(12 << 20) - 1]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * (12 << 20)


def test_only_some_of_many_columns_are_listed(tmp_path: Path) -> None:
    names = ",".join(f"c{n}" for n in range(5000))
    with pytest.raises(ValueError, match=r"it has 'c0', .*'c49' and 4,950 more$"):
        texts(csv_file(tmp_path, f"{names}\n"))


def test_parquet_batches_have_a_few_megabytes_for_any_row_size(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": [str(n) * (1 << 20) for n in range(10)]}), path, use_dictionary=False)
    sizes = [raw.text.nbytes for raw in read(path, ReadOptions())]
    assert len(sizes) > 1
    assert max(sizes) <= 4 * (1 << 20) + 64


def test_reading_reports_its_position(tmp_path: Path) -> None:
    for kind, write in WRITERS.items():
        path = tmp_path / f"x{kind}"
        write(path)
        raws: list[RawBatch] = list(read(path, ReadOptions()))
        assert raws[-1].position == path.stat().st_size
