"""The transformer's flow on real English: it is evaluated beside n-grams, and its model generates text."""

import json
from pathlib import Path

import pytest

from lexloom.deployments.cli.main import main
from lexloom.flows.transformer_lm import TransformerLMFlowConfig
from lexloom.tasks.train.transformer import TrainTransformerConfig

STAGES = [
    *("corpus", "subwords", "windows", "train_transformer", "evaluate_lm", "generate_samples", "report_lm"),
]


def test_real_text_becomes_a_model_that_writes(
    prefect_server: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)
    command = [
        *("transformer-lm", "--store", str(tmp_path), "--json"),
        *("--limit", "300", "--encoding", "characters", "--runner", "local", "--workers", "1"),
        *("--layers", "1", "--width", "32", "--heads", "2", "--context", "32", "--epochs", "1"),
    ]
    assert main(command) == 0
    printed, said = capsys.readouterr()
    names = [line.split()[0] for line in said.splitlines()[1:] if line]
    assert [name for name in names if name != "training"][: len(STAGES)] == STAGES
    assert "training" in names, "it writes while it learns"
    outcome = json.loads(printed)
    assert outcome["metrics"]["bits_per_byte"] < outcome["metrics"]["unigram bits_per_byte"]
    page = Path(outcome["report"]).read_text()
    assert "parameters</" in page, "among the main figures"
    assert "Evaluation" in page
    assert "Samples" in page

    generate = ["generate", outcome["model"], "--tokens", "40", "--temperature", "0", "--prompt"]
    shown = []
    for _ in range(2):
        assert main([*generate, "The "]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert shown[0].startswith("The ")
    assert len(shown[0]) == len("The ") + 40 + len("\n")

    assert main([*generate, "Ж"]) == 1
    assert "Ж" in capsys.readouterr().err

    # training of this model is continued, with a learning rate that changes nothing
    again = [*command[:5], "300", "--runner", "local", "--workers", "1", "--init-from", outcome["model"]]
    assert main([*again, "--learning-rate", "1e-9", "--max-steps", "1"]) == 0
    continued = json.loads(capsys.readouterr().out)
    for metric in ("bits_per_byte", "unigram bits_per_byte"):
        assert continued["metrics"][metric] == pytest.approx(outcome["metrics"][metric], rel=1e-3)
    assert main(["generate", continued["model"], *generate[2:], "The "]) == 0
    assert capsys.readouterr().out == shown[0]


def test_windows_are_adjacent_contexts_plus_one_token() -> None:
    config = TransformerLMFlowConfig(train=TrainTransformerConfig(context=16, heads=2, epochs=1))
    assert (config.windows().size, config.windows().stride) == (17, 16)
    assert config.windows().across_documents
    assert not config.model_copy(update={"within_documents": True}).windows().across_documents


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--minutes", "1", "--max-steps", "9"], "minutes and --max-steps both limit the training: omit one"),
        (["--minutes", "0"], "--minutes should be greater than 0 (got '0')"),
        (["--minutes", "soon"], "--minutes should be a valid number"),
    ],
)
def test_bad_budgets_are_one_sentence(
    flags: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)
    assert main(["transformer-lm", *flags]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
