"""`lexloom classify`: texts from arguments, stdin and files of every format."""

import gzip
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lexloom.deployments.cli.main import main
from lexloom.deployments.cli.texts import FIRST_BATCH, MAX_BATCH, growing_batches
from lexloom.models.sentiment.classifier import Classifier, save_classifier
from lexloom.models.sentiment.frozen_encoder import TrainedPart
from lexloom.models.sentiment.hf_loading import load_classifier
from lexloom.models.word2vec.vectors import WordVectors
from tests.deployments.cli.test_main import complaint
from tests.models.tiny import write_backbone


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    backbone = write_backbone(tmp_path / "backbone")
    part = TrainedPart(load_classifier(backbone, ["bad", "good"]), 1, from_activations=True)
    trained = {part.names[name]: value for name, value in part.named_parameters()}
    save_classifier(tmp_path / "classifier", backbone, ["bad", "good"], 16, trained)
    return str(tmp_path / "classifier")


TEXTS = ["the film was good", "word7 word9 was bad", "not the film " * 20]


def expected(classifier: str, texts: list[str]) -> str:
    found = Classifier.load(classifier).classify(texts)
    return "".join(f"{label}\t{score:.4f}\n" for label, score in found)


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_arguments_files_and_stdin_are_classified_alike(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, classifier: str
) -> None:
    lines = b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode()  # as an editor on Windows saves it
    (tmp_path / "lines.txt").write_bytes(lines)
    pipe(monkeypatch, lines)
    said = []
    for given in (TEXTS, ["--file", str(tmp_path / "lines.txt")], []):
        assert main(["classify", classifier, *given]) == 0
        said.append(capsys.readouterr().out)
    assert said == [expected(classifier, TEXTS)] * 3


def test_json_has_the_scores_of_all_labels(capsys: pytest.CaptureFixture[str], classifier: str) -> None:
    assert main(["classify", classifier, "--json", *TEXTS]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [f"{line['label']}\t{line['score']:.4f}" for line in found] == expected(
        classifier, TEXTS
    ).splitlines()
    assert all(line["scores"][line["label"]] == line["score"] for line in found)
    assert all(sum(line["scores"].values()) == pytest.approx(1, abs=2e-4) for line in found)


def test_flags_can_be_anywhere(capsys: pytest.CaptureFixture[str], classifier: str) -> None:
    one, two, three = TEXTS
    said = []
    for given in (["--json", *TEXTS], [one, "--json", two, three], [*TEXTS, "--json"]):
        assert main(["classify", classifier, *given]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]
    assert len(said[0].splitlines()) == 3
    assert "Unknown option: --jsn. Did you mean --json?" in complaint(
        capsys, "classify", classifier, "--jsn", one
    )


def test_a_very_long_text_is_truncated(capsys: pytest.CaptureFixture[str], classifier: str) -> None:
    assert main(["classify", classifier, "the film was good " * 25_000]) == 0
    assert capsys.readouterr().out == expected(classifier, ["the film was good " * 5])


def test_input_is_read_lazily() -> None:
    """The first labels are printed after a few texts, and at most one batch is in memory."""
    taken = []

    def texts() -> Iterator[str]:
        for number in range(10_000):
            taken.append(number)
            yield "text"

    batches = growing_batches(texts())
    assert len(next(batches)) == len(taken) == FIRST_BATCH
    sizes = [len(batch) for batch in batches]
    assert max(sizes) == MAX_BATCH
    assert FIRST_BATCH + sum(sizes) == 10_000
    assert [len(batch) for batch in growing_batches(["x" * (1 << 22)] * 3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (b"good\ncaf\xe9\n", "stdin, line 2, byte 4: not UTF-8 (0xe9): convert it"),
    ],
)
def test_lines_that_are_not_utf8_are_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    classifier: str,
    lines: bytes,
    says: str,
) -> None:
    pipe(monkeypatch, lines)
    assert says in complaint(capsys, "classify", classifier)


def test_texts_before_an_invalid_line_are_classified(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, classifier: str
) -> None:
    pipe(monkeypatch, "\n".join(TEXTS).encode() + b"\ncaf\xe9\nbad")
    assert main(["classify", classifier]) == 1
    out, said = capsys.readouterr()
    assert out == expected(classifier, TEXTS)
    assert "stdin, line 4, byte 4: not UTF-8" in said


ONE, TWO, THREE = TEXTS
WITH_GAPS: list[str | None] = [None, ONE, None, None, TWO, THREE, None]


def write_lines(path: Path) -> None:
    path.write_text("".join(f"{text or ' '}\n" for text in WITH_GAPS))


def write_rows(path: Path) -> None:
    path.write_text("id,body\n" + "".join(f"{n},{text or ''}\n" for n, text in enumerate(WITH_GAPS)))


def write_objects(path: Path) -> None:
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in WITH_GAPS))


def write_packed(path: Path) -> None:
    write_lines(path.with_suffix(""))
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))


def write_table(path: Path) -> None:
    pq.write_table(pa.table({"body": WITH_GAPS}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.txt", write_lines),
        ("x.txt.gz", write_packed),
        ("x.csv", write_rows),
        ("x.jsonl", write_objects),
        ("x.parquet", write_table),
        ("stdin", write_lines),
    ],
)
def test_texts_without_words_have_an_empty_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    classifier: str,
    name: str,
    write: Callable[[Path], None],
) -> None:
    write(tmp_path / name)
    given = ["--file", str(tmp_path / name), "--text-column", "body"]
    if name == "stdin":
        pipe(monkeypatch, (tmp_path / name).read_bytes())
        given = []
    assert main(["classify", classifier, *given]) == 0
    out, said = capsys.readouterr()
    one, two, three = expected(classifier, TEXTS).splitlines()
    assert out.splitlines() == ["", one, "", "", two, three, ""]
    assert said.splitlines()[-1] == "warning: 4 texts skipped (missing or blank)"


def test_a_text_without_words_is_null_in_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, classifier: str
) -> None:
    pipe(monkeypatch, b"good\n\nbad\n")
    assert main(["classify", classifier, "--json"]) == 0
    out, said = capsys.readouterr()
    first, second, third = map(json.loads, out.splitlines())
    assert second == dict.fromkeys(first)
    assert None not in third.values()
    assert said.splitlines()[-1] == "warning: 1 text skipped (missing or blank)"


def test_a_csv_header_is_skipped_and_flags_set_how_a_file_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, classifier: str
) -> None:
    (tmp_path / "x.csv").write_bytes("text;n\n'the; film';1\nétait bon;2\n".encode("latin-1"))
    arguments = ["classify", classifier, "--file", "x.csv"]
    flags = ["--csv-delimiter", ";", "--csv-quote", "'", "--text-encoding", "latin-1"]
    assert main([*arguments, *flags]) == 0
    assert capsys.readouterr().out == expected(classifier, ["the; film", "était bon"])
    for changed, says in (
        (["--text-column", "body"], "x.csv has no column 'body': it has 'text', 'n'"),
        (["--csv-quote", "ab"], "--csv-quote must be one ASCII character"),
        (["--text-encoding", "latin-one"], "'latin-one' is not a known text encoding"),
    ):
        assert says in complaint(capsys, *arguments, *flags, *changed)
    assert "--text-encoding latin-1" in complaint(capsys, *arguments, *flags[:4])
    assert main([*arguments, *flags[:4], "--invalid-utf8", "drop"]) == 0
    assert capsys.readouterr().out == expected(classifier, ["the; film"]) + "\n"


def test_an_unsupported_file_format_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, classifier: str
) -> None:
    (tmp_path / "x.tsv").write_text("text\tn\n")
    said = complaint(capsys, "classify", classifier, "--file", "x.tsv")
    assert "x.tsv can't be read: supported formats are .txt, .jsonl, .csv, .parquet" in said


def test_unusable_input_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, classifier: str
) -> None:
    vectors = str(tmp_path / "vectors")
    WordVectors(["war"], torch.ones(1, 2)).save(tmp_path / "vectors")

    def said(*arguments: str) -> str:
        return complaint(capsys, "classify", *arguments)

    assert "text 2 is empty" in said(classifier, "good", " ")
    assert "text 1, byte 1: not UTF-8" in said(classifier, os.fsdecode(b"\xff"))
    assert "No such file or directory: nowhere.txt" in said(classifier, "--file", "nowhere.txt")
    assert "pass either texts or --file, not both" in said(classifier, "good", "--file", "nowhere.txt")
    assert f"there is no model in {tmp_path}" in said(str(tmp_path), "good")
    assert "contains a model of the kind BertModel, not a text" in said(str(tmp_path / "backbone"), "good")
    assert vectors in said(vectors, "good")


def test_stdin_of_a_terminal_is_not_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, classifier: str
) -> None:
    pipe(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert "there is no text to classify: pass texts or --file" in complaint(capsys, "classify", classifier)
