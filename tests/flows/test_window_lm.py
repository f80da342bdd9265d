"""The window language model flow on English text: two trainings in a row, and generation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lexloom.flows.window_lm import WindowLMFlowConfig
from lexloom.models.language_model import load_language_model
from lexloom.models.sampling import Sampling
from lexloom.tasks.evaluate.language_model import LMEvaluation

STAGES = [
    *("corpus", "subwords", "pairs", "noise", "train_word2vec", "embeddings", "windows"),
    *("train_window_lm", "evaluate_lm", "samples", "report_lm"),
]
ROOT = Path(__file__).parents[2]


def run(store: Path, home: Path, *flags: str) -> tuple[dict[str, object], str]:
    """Run the command; return its JSON object and its other output."""
    command = [sys.executable, "-m", "lexloom.flows.window_lm", "--store", str(store), "--json", *flags]
    environment = {**os.environ, "PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_text_is_trained_to_a_model_that_generates(prefect_home: Path, tmp_path: Path) -> None:
    flags = [
        *("--limit", "600", "--runner", "local", "--workers", "1", "--epochs", "1"),
        *("--width", "64", "--features", "32", "--vectors-dim", "32", "--vectors-epochs", "1"),
    ]
    outcome, said = run(tmp_path, prefect_home, *flags)
    names = [line.split()[0] for line in said.splitlines()[1:] if line]
    assert [name for name in names if name != "training"][: len(STAGES)] == STAGES
    assert "training" in names, "it writes while it learns"
    model = Path(str(outcome["model"]))
    (evaluation,) = tmp_path.glob("evaluate_lm/*/evaluation.json")
    scores = {s.name: s for s in LMEvaluation.model_validate_json(evaluation.read_bytes()).scores}
    assert set(scores) == {"window language model", "4-gram", "unigram"}
    assert scores["window language model"].bits_per_byte < scores["unigram"].bits_per_byte  # type: ignore[operator]
    page = Path(str(outcome["report"])).read_text()
    for text in ("<h2>Evaluation", "4-gram", "<h2>Samples", "waiting for data"):
        assert text in page
    assert "window language model" in said
    assert "bits/byte" in said

    writer = load_language_model(model)
    options = Sampling(max_tokens=20, seed=3)
    pieces = list(writer.generate(["The people of the"], options))
    written = "".join(piece[0] for piece in pieces)
    command = [
        sys.executable,
        "-m",
        "lexloom",
        "generate",
        str(model),
        "--tokens",
        "20",
        "--seed",
        "3",
    ]
    shown = subprocess.run(
        [*command, "--prompt", "The people of the"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert shown.stdout == f"The people of the{written}\n"

    again, _ = run(tmp_path, prefect_home, *flags)
    assert (again["stages"], again["cached"]) == (11, 11)


def test_defaults_keep_the_text_unchanged() -> None:
    config = WindowLMFlowConfig()
    assert not config.corpus.normalization.strip_markup
    assert not config.corpus.normalization.lower
    assert not config.corpus.normalization.strip_punctuation
    assert config.vectors.runner == "local"
    assert WindowLMFlowConfig.model_validate({"corpus": {"source": "x"}}).corpus.normalization == (
        config.corpus.normalization
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--size", "1"], "--size should be greater than or equal to 2 (it is '1')"),
        (["--stride", "0"], "--stride should be greater than or equal to 1 (it is '0')"),
        (["--encoding", "gpt3"], "there is no encoding 'gpt3'"),
    ],
)
def test_bad_input_is_one_sentence(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lexloom.deployments.cli.main import main

    monkeypatch.setattr("lexloom.deployments.cli.main.settle_environment", lambda verbose: None)
    assert main(["window-lm", *flags]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
