"""The transformer flow on English text: training, evaluation against n-grams, and generation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lexloom.deployments.cli.main import main
from lexloom.flows.transformer_lm import TransformerLMFlowConfig
from lexloom.tasks.train.transformer import TrainTransformerConfig

STAGES = [
    *("corpus", "subwords", "windows", "train_transformer", "evaluate_lm", "samples", "report_lm"),
]
ROOT = Path(__file__).parents[2]


def test_text_is_trained_to_a_model_that_generates(
    prefect_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        *(sys.executable, "-m", "lexloom.flows.transformer_lm", "--store", str(tmp_path), "--json"),
        *("--limit", "300", "--encoding", "characters", "--runner", "local", "--workers", "1"),
        *("--layers", "1", "--width", "32", "--heads", "2", "--context", "32", "--epochs", "1"),
    ]
    environment = {**os.environ, "PREFECT_HOME": str(prefect_home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stderr.splitlines()[1:] if line]
    assert [name for name in names if name != "training"][: len(STAGES)] == STAGES
    assert "training" in names, "it writes while it learns"
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["metrics"]["bits_per_byte"] < outcome["metrics"]["unigram bits_per_byte"]
    page = Path(outcome["report"]).read_text()
    assert "parameters</" in page, "among the main figures"
    assert "<h2>Evaluation" in page
    assert "<h2>Samples" in page

    capsys.readouterr()
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


def test_windows_are_adjacent_contexts_plus_one_token() -> None:
    config = TransformerLMFlowConfig(train=TrainTransformerConfig(context=16, heads=2))
    assert (config.windows().size, config.windows().stride) == (17, 16)
    assert config.windows().across_documents
    assert not config.model_copy(update={"within_documents": True}).windows().across_documents
