"""The window language model's flow on real English: it chains two trainings, and its model generates text."""

import json
from pathlib import Path

import pytest

from lexloom.deployments.cli.main import main
from lexloom.flows.window_lm import WindowLMFlowConfig
from lexloom.models.language_model import load_language_model
from lexloom.models.sampling import Sampling
from lexloom.tasks.evaluate.language_model import LMEvaluation

STAGES = [
    *("corpus", "train_tokenizer", "subwords", "pairs", "negative_sampling", "train_word2vec"),
    *("embeddings", "windows", "train_window_lm", "evaluate_lm", "generate_samples", "report_lm"),
]


@pytest.fixture(autouse=True)
def unchanged_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)


def test_real_text_becomes_a_model_that_writes(
    prefect_server: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        *("window-lm", "--store", str(tmp_path), "--json"),
        *("--limit", "600", "--runner", "local", "--workers", "1", "--epochs", "1"),
        *("--width", "64", "--features", "32", "--vectors-dim", "32", "--vectors-epochs", "1"),
    ]
    assert main(command) == 0
    printed, said = capsys.readouterr()
    outcome = json.loads(printed)
    names = [line.split()[0] for line in said.splitlines()[1:] if line]
    assert [name for name in names if name != "training"][: len(STAGES)] == STAGES
    assert "training" in names, "it writes while it learns"
    model = Path(outcome["model"])
    (evaluation,) = tmp_path.glob("evaluate_lm/*/evaluation.json")
    scores = {s.name: s for s in LMEvaluation.model_validate_json(evaluation.read_bytes()).scores}
    assert set(scores) == {"window language model", "4-gram", "unigram"}
    assert scores["window language model"].bits_per_byte < scores["unigram"].bits_per_byte  # type: ignore[operator]
    page = Path(outcome["report"]).read_text()
    for text in ("Evaluation", "4-gram", "Samples", "activity"):
        assert text in page
    assert "window language model" in said
    assert "bits/byte" in said

    writer = load_language_model(model)
    options = Sampling(max_tokens=20, seed=3)
    pieces = list(writer.generate(["The people of the"], options))
    written = "".join(piece[0] for piece in pieces)
    generate = ["generate", str(model), "--tokens", "20", "--seed", "3", "--prompt", "The people of the"]
    assert main(generate) == 0
    assert capsys.readouterr().out == f"The people of the{written}\n"

    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["stages"], again["cached"]) == (12, 12)


def test_defaults_keep_the_text_unchanged() -> None:
    config = WindowLMFlowConfig()
    assert not config.corpus.normalization.strip_markup
    assert not config.corpus.normalization.lower
    assert not config.corpus.normalization.strip_punctuation
    assert config.corpus.documents == "file"
    assert config.vectors.runner == "local"
    assert WindowLMFlowConfig.model_validate({"corpus": {"source": "x"}}).corpus.normalization == (
        config.corpus.normalization
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--size", "1"], "--size should be greater than or equal to 2 (got '1')"),
        (["--stride", "0"], "--stride should be greater than or equal to 1 (got '0')"),
        (["--encoding", "gpt3"], "there is no encoding 'gpt3'"),
    ],
)
def test_bad_input_is_one_sentence(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["window-lm", *flags]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
