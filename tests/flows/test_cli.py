"""The command: bad input ends in one sentence, and the store answers questions."""

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli import main
from flows.model_cli import FIRST_BATCH, MOST_AT_ONCE, growing_batches
from models.encoder import TrainedPart, load_classifier
from models.normalization import DESCRIPTIONS, Normalization
from models.sentiment import Sentiment, save_classifier
from models.word_vectors import WordVectors
from tasks.artifacts import Store
from tasks.corpus import AsWritten
from tests.models.tiny import write_backbone
from tests.tasks.test_artifacts import put, read, write


@pytest.fixture(autouse=True)
def unchanged_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` settles environment variables and the warning filter for the whole process."""
    monkeypatch.setattr("flows.cli.settle_environment", lambda verbose: None)


@pytest.fixture
def model(tmp_path: Path) -> str:
    import torch

    folder = tmp_path / "model"
    folder.mkdir()
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.2]])
    WordVectors(["war", "wars", "peace", "tea"], rows).save(folder)
    return str(folder)


def record(folder: Path, rules: Normalization, **description: str) -> None:
    """Writes the rules into a model's description."""
    path = next(each for name in DESCRIPTIONS if (each := folder / name).is_file() or name == "config.json")
    described = json.loads(path.read_text()) if path.is_file() else description
    path.write_text(json.dumps({**described, "normalization": rules.model_dump()}))


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that fails says: one line, no traceback."""
    assert main(list(arguments)) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ")
    assert not any("Traceback" in line for line in said)
    return said[-1]


@pytest.mark.parametrize(
    ("flag", "value", "bound"),
    [
        ("--window", "0", "greater than or equal to 1"),
        ("--dim", "0", "greater than or equal to 1"),
        ("--dim", "5000", "less than or equal to 4096"),
        ("--negatives", "0", "greater than or equal to 1"),
        ("--epochs", "0", "greater than or equal to 1"),
        ("--workers", "9", "less than or equal to 8"),
        ("--learning-rate", "fast", "valid number"),
        ("--sync-period", "0", "greater than or equal to 1"),
    ],
)
def test_a_value_out_of_bounds_names_its_flag(
    capsys: pytest.CaptureFixture[str], flag: str, value: str, bound: str
) -> None:
    said = complaint(capsys, "word2vec", flag, value)
    assert flag in said
    assert bound in said
    assert value in said


def test_neighbours_and_analogies_are_printed(capsys: pytest.CaptureFixture[str], model: str) -> None:
    assert main(["neighbours", model, "war", "-k", "2"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["war", "wars", "peace"]
    assert main(["analogy", model, "war", "wars", "peace", "-k", "1"]) == 0
    assert "tea" in capsys.readouterr().out


def test_words_and_prompts_are_normalised_as_the_training_text_was(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    record(Path(model), Normalization(), model="word2vec")
    assert main(["neighbours", model, "WAR!", "-k", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "war"
    assert main(["analogy", model, "War", "WARS", "«Peace»", "-k", "1"]) == 0
    assert capsys.readouterr().out.startswith("war is to wars as peace is to")
    assert "'war peace' is 2 words" in complaint(capsys, "neighbours", model, "war peace")


def test_a_prompt_is_normalised_as_the_training_text_was(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.deployments.store import write_transformer, write_windows

    for write_model in (write_windows, write_transformer):
        folder = tmp_path / write_model.__name__
        folder.mkdir()
        write_model(folder)
        record(folder, AsWritten(lower=True, strip_markup=True))
        assert main(["generate", str(folder), "--prompt", "<i>The</i> PEOPLE", "--tokens", "3"]) == 0
        assert capsys.readouterr().out.startswith("the people")


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["analogy"],
        ["classify"],
        ["neighbours"],
        ["sentiment"],
        ["word2vec"],
        ["store", "ls"],
        ["store", "gc"],
    ):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
        assert "usage: lexloom" in capsys.readouterr().out


def test_a_flag_that_is_not_there_gets_near_spellings(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "word2vec", "--sorce", "books/")
    assert "there is no flag --sorce; near it: --source" in said


def test_a_store_that_is_not_there_is_not_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no store at /nowhere" in complaint(capsys, "store", "verify", "--store", "/nowhere")


def test_a_local_run_says_how_many_workers_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "word2vec", "--runner", "local")
    assert said == "error: the local runner has one worker, not 2: say --workers 1, or --runner ray"


def test_an_unknown_word_gets_near_spellings(capsys: pytest.CaptureFixture[str], model: str) -> None:
    said = complaint(capsys, "neighbours", model, "peaze")
    assert "'peaze'" in said
    assert "peace" in said


def test_a_folder_that_is_no_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(tmp_path) in complaint(capsys, "neighbours", str(tmp_path), "war")


def test_the_store_is_listed_verified_and_cleared(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    artifact = put(store, "corpus", "k1", limit=5)
    put(store, "corpus", "k2", limit=6)
    assert main(["store", "ls"]) == 0
    assert "2 artifacts" in capsys.readouterr().out
    assert main(["store", "verify"]) == 0
    assert capsys.readouterr().out == "2 intact, 0 damaged, 0 outdated\n"
    assert main(["store", "verify", "--all"]) == 0
    assert capsys.readouterr().out.startswith("corpus/k1  intact\ncorpus/k2  intact\n2 intact")
    (artifact.folder / "data.txt").write_text("TEXT")
    assert main(["store", "verify"]) == 1
    assert "corpus/k1  data.txt does not match its digest" in capsys.readouterr().out
    assert main(["store", "gc", "--keep", "1"]) == 0
    assert "freed" in capsys.readouterr().out
    assert len(list(store.manifests())) == 1


def test_explain_tells_what_made_a_stage_run(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    manifest = read(put(store, "corpus", "k1"))
    write(store, manifest.model_copy(update={"why": ["corpus.limit: 5 -> 6"]}))
    assert main(["store", "explain", "corpus"]) == 0
    assert "corpus.limit: 5 -> 6" in capsys.readouterr().out
    assert "matches 'pears': the store has the stages corpus" in complaint(
        capsys, "store", "explain", "pears"
    )


def test_another_store_is_named_by_a_flag(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    put(Store(tmp_path / "other"), "corpus", "k1")
    assert main(["store", "ls", "--store", str(tmp_path / "other")]) == 0
    assert "1 artifact," in capsys.readouterr().out


def test_a_wrong_number_to_keep_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--keep is -1" in complaint(capsys, "store", "gc", "--keep", "-1")


def test_a_package_that_is_optional_is_named_with_what_brings_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "models.sentiment")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "this needs tokenizers: pip install 'lexloom[sentiment]'" in complaint(
        capsys, "classify", "model", "good"
    )


# classify


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    backbone = write_backbone(tmp_path / "backbone")
    part = TrainedPart(load_classifier(backbone, ["bad", "good"]), 1, from_activations=True)
    trained = {part.names[name]: value for name, value in part.named_parameters()}
    save_classifier(tmp_path / "classifier", backbone, ["bad", "good"], 16, trained)
    return str(tmp_path / "classifier")


TEXTS = ["the film was good", "word7 word9 was bad", "not the film " * 20]


def expected(classifier: str, texts: list[str]) -> str:
    found = Sentiment.load(classifier).classify(texts)
    return "".join(f"{label}\t{score:.4f}\n" for label, score in found)


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_texts_lines_of_a_file_and_of_stdin_are_classified_alike(
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


def test_flags_may_stand_anywhere(capsys: pytest.CaptureFixture[str], classifier: str) -> None:
    one, two, three = TEXTS
    said = []
    for given in (["--json", *TEXTS], [one, "--json", two, three], [*TEXTS, "--json"]):
        assert main(["classify", classifier, *given]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]
    assert len(said[0].splitlines()) == 3
    assert "there is no flag --jsn; near it: --json" in complaint(
        capsys, "classify", classifier, "--jsn", one
    )


def test_a_text_of_a_hundred_thousand_words_is_cut(
    capsys: pytest.CaptureFixture[str], classifier: str
) -> None:
    assert main(["classify", classifier, "the film was good " * 25_000]) == 0
    assert capsys.readouterr().out == expected(classifier, ["the film was good " * 5])


def test_input_is_read_as_it_is_needed() -> None:
    """The first labels come after a few texts, and no more than a batch is held."""
    taken = []

    def texts() -> Iterator[str]:
        for number in range(10_000):
            taken.append(number)
            yield "text"

    batches = growing_batches(texts())
    assert len(next(batches)) == len(taken) == FIRST_BATCH
    sizes = [len(batch) for batch in batches]
    assert max(sizes) == MOST_AT_ONCE
    assert FIRST_BATCH + sum(sizes) == 10_000
    assert [len(batch) for batch in growing_batches(["x" * (1 << 22)] * 3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (b"good\n\nbad\n", "stdin, line 2 is empty: leave it out"),
        (b"good\ncaf\xe9\n", "stdin, line 2, byte 4: not UTF-8 (0xe9): convert it"),
    ],
)
def test_lines_that_are_no_text_are_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    classifier: str,
    lines: bytes,
    says: str,
) -> None:
    pipe(monkeypatch, lines)
    assert says in complaint(capsys, "classify", classifier)


def test_texts_before_a_line_that_is_refused_have_their_labels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, classifier: str
) -> None:
    pipe(monkeypatch, "\n".join([*TEXTS, "", "bad"]).encode())
    assert main(["classify", classifier]) == 1
    out, said = capsys.readouterr()
    assert out == expected(classifier, TEXTS)
    assert "stdin, line 4 is empty: leave it out" in said


def test_empty_lines_at_the_end_are_no_texts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, classifier: str
) -> None:
    pipe(monkeypatch, "\n".join([*TEXTS, "", " \n"]).encode())
    assert main(["classify", classifier]) == 0
    assert capsys.readouterr().out == expected(classifier, TEXTS)
    assert "text 2 is empty: leave it out" in complaint(capsys, "classify", classifier, "good", " ")


def test_what_can_not_be_classified_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, classifier: str, model: str
) -> None:
    def said(*arguments: str) -> str:
        return complaint(capsys, "classify", *arguments)

    assert "text 2 is empty" in said(classifier, "good", " ")
    assert "text 1, byte 1: not UTF-8" in said(classifier, os.fsdecode(b"\xff"))
    assert "No such file or directory: nowhere.txt" in said(classifier, "--file", "nowhere.txt")
    assert "can't both be given" in said(classifier, "good", "--file", "nowhere.txt")
    assert f"there is no model in {tmp_path}" in said(str(tmp_path), "good")
    assert "holds a model of the kind BertModel, not a classifier" in said(str(tmp_path / "backbone"), "good")
    assert model in said(model, "good")


def test_a_terminal_is_not_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, classifier: str
) -> None:
    pipe(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert "there is no text to classify: give some" in complaint(capsys, "classify", classifier)
