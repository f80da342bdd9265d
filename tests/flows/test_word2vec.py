"""The word2vec flow on English text, with two Ray workers: training, caching and repair."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gensim.models import KeyedVectors
from prefect.client.orchestration import get_client

from lexloom.flows.run import Outcome
from lexloom.flows.word2vec import Word2VecConfig, word2vec
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.corpus import CorpusConfig
from lexloom.tasks.pairs import PairsConfig
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.train.word2vec import TrainWord2VecConfig
from lexloom.training.ray.runtime import ray_runtime

STAGES = [
    *("corpus", "vocabulary", "tokens", "pairs", "noise", "train_word2vec", "evaluate", "report"),
]


@pytest.fixture(scope="module")
def runtime(prefect_server: None) -> Iterator[None]:
    with ray_runtime(2, None, False):
        yield


def built_by(run: Word2VecConfig) -> tuple[Outcome, list[str]]:
    """Return a run's outcome, and the stages that it built, in order."""
    before = {(each.stage, each.created) for each in Store().manifests()}
    outcome = word2vec(run)
    built = [each.stage for each in Store().manifests() if (each.stage, each.created) not in before]
    assert outcome.stages - outcome.cached == len(built)
    return outcome, built


def published() -> set[str | None]:
    """Return the keys of the artifacts in Prefect's UI."""
    with get_client(sync_client=True) as client:
        return {artifact.key for artifact in client.read_artifacts()}


def test_text_is_trained_to_word_vectors(runtime: None) -> None:
    config = Word2VecConfig(train=TrainWord2VecConfig(epochs=3, dim=50, workers=2))
    outcome, built = built_by(config)
    assert built == STAGES

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
    assert history[-1]["loss"] < history[0]["loss"] - 1
    assert {"config.json", "README.md", "vocabulary.json", "model.safetensors"} <= {
        path.name for path in outcome.model.iterdir()
    }
    assert outcome.report.read_text().startswith("<!doctype html>")

    assert published() == {"training", "training-curve", "report", "stages"}

    again, built = built_by(config)
    assert built == []
    assert again.model == outcome.model


Small = Callable[..., tuple[Outcome, list[str]]]


@pytest.fixture
def small(prefect_server: None, tmp_path: Path) -> Small:
    """Run the flow on a few words in this process, with options of the pairs stage."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog sat on the rug\n" * 200)

    def run(**pairs: Any) -> tuple[Outcome, list[str]]:
        return built_by(
            Word2VecConfig(
                corpus=CorpusConfig(source=str(tmp_path / "text.txt")),
                pairs=PairsConfig(**pairs),
                train=TrainWord2VecConfig(epochs=1, dim=16, workers=1, runner="local"),
            )
        )

    return run


def test_only_changed_or_damaged_artifacts_are_rebuilt(small: Small) -> None:
    first, built = small()
    assert built == STAGES
    other, built = small(window=3)
    assert built == ["pairs", "train_word2vec", "evaluate", "report"]
    assert other.model != first.model

    next(Store().root.glob("tokens/*/shard-00000.parquet")).unlink()
    again, built = small()
    assert built == ["tokens"]
    assert again.model == first.model


def test_streamed_pairs_skip_the_pairs_stage(small: Small) -> None:
    def run(**pairs: Any) -> list[str]:
        return small(mode="streamed", **pairs)[1]

    assert run() == [name for name in STAGES if name != "pairs"]
    assert run(compression="zstd") == []
    assert run(window=3) == ["train_word2vec", "evaluate", "report"]
    assert run(validation_share=0.2) == ["train_word2vec", "evaluate", "report"]


def test_json_output_is_one_object(prefect_home: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the rug\n" * 200)
    command = [
        *(
            sys.executable,
            "-m",
            "lexloom.flows.word2vec",
            "--source",
            str(text),
            "--runner",
            "local",
            "--json",
        ),
        *("--workers", "1", "--dim", "16", "--epochs", "1", "--store", str(tmp_path / "elsewhere")),
    ]
    environment = {**os.environ, "PREFECT_HOME": str(prefect_home)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert set(outcome) == {"flow", "model", "report", "metrics", "stages", "cached", "seconds"}
    assert (outcome["flow"], outcome["stages"], outcome["cached"]) == ("word2vec", 8, 0)
    assert Path(outcome["model"]).is_absolute()
    assert Path(outcome["model"]).is_relative_to(tmp_path / "elsewhere")
    assert Path(outcome["report"]).is_file()
    lines = done.stderr.splitlines()
    assert lines[0] == "lexloom word2vec · store elsewhere"
    assert f"model   {Path(outcome['model']).relative_to(tmp_path)}" in lines
    assert [line.split()[0] for line in lines[1:9]] == STAGES
    assert "neighbours" in done.stderr
    assert "Traceback" not in done.stderr
    assert "prefect" not in done.stderr.replace(str(tmp_path), "").lower()
