"""The flow in this process, on a few words: what is built again, what is published, and what is printed."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

import lexloom
from lexloom.deployments.cli.main import main
from lexloom.flows.run import Outcome
from lexloom.flows.word2vec import Word2VecConfig, word2vec
from lexloom.tasks.corpus import CorpusConfig
from lexloom.tasks.pairs import PairsConfig
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.lookup import find_model_folder
from lexloom.tasks.train.word2vec import MAX_AUTO_EPOCHS, TrainWord2VecConfig

STAGES = [
    *("corpus", "vocabulary", "tokens", "pairs", "negative_sampling"),
    *("train_word2vec", "evaluate_word2vec", "report_word2vec"),
]
TEXT = "the cat sat on the mat and the dog sat on the rug\n" * 200


def built_by(run: Word2VecConfig) -> tuple[Outcome, list[str]]:
    """Return a run's outcome, and the stages that it built, in order."""
    before = {(each.stage, each.created) for each in Store().manifests()}
    outcome = word2vec(run)
    built = [each.stage for each in Store().manifests() if (each.stage, each.created) not in before]
    assert outcome.stages - outcome.cached == len(built)
    return outcome, built


Small = Callable[..., tuple[Outcome, list[str]]]


@pytest.fixture
def small(prefect_server: None, tmp_path: Path) -> Small:
    """`built_by` a run on a few words, in this process; its options are those of the pairs."""
    (tmp_path / "text.txt").write_text(TEXT)

    def run(threads: int = 1, epochs: Any = 1, **pairs: Any) -> tuple[Outcome, list[str]]:
        return built_by(
            Word2VecConfig(
                corpus=CorpusConfig(source=str(tmp_path / "text.txt")),
                pairs=PairsConfig(**pairs),
                train=TrainWord2VecConfig(epochs=epochs, dim=16, workers=1, threads=threads, runner="local"),
            )
        )

    return run


def test_only_changed_or_damaged_artifacts_are_rebuilt(small: Small) -> None:
    first, built = small()
    assert built == STAGES
    other, built = small(window=3)
    assert built == ["pairs", "train_word2vec", "evaluate_word2vec", "report_word2vec"]
    assert other.model != first.model

    next(Store().root.glob("tokens/*/shard-00000.parquet")).unlink()
    again, built = small(threads=3)
    assert built == ["tokens"], "the number of threads does not affect the model"
    assert again.model == first.model


def test_streamed_pairs_skip_the_pairs_stage(small: Small) -> None:
    def run(**pairs: Any) -> list[str]:
        return small(mode="streamed", **pairs)[1]

    assert run() == [name for name in STAGES if name != "pairs"]
    assert run(compression="zstd") == []
    assert run(window=3) == ["train_word2vec", "evaluate_word2vec", "report_word2vec"]
    assert run(validation_share=0.2) == ["train_word2vec", "evaluate_word2vec", "report_word2vec"]


def test_a_second_name_builds_nothing_and_a_name_moves_to_the_model_of_the_latest_run(
    prefect_server: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)

    def run(name: str | None, window: int = 5) -> Outcome:
        return word2vec(
            Word2VecConfig(
                name=name,
                corpus=CorpusConfig(source=str(tmp_path / "text.txt")),
                pairs=PairsConfig(window=window),
                train=TrainWord2VecConfig(epochs=1, dim=16, workers=1, threads=1, runner="local"),
            )
        )

    first = run(None)
    assert re.fullmatch(r"text-\d{4}-\d\d-\d\d", first.name)
    page = first.report.read_text()
    assert f"<h1>Word vectors · {first.name}</h1>" in page
    assert f"lexloom word2vec --source {tmp_path}/text.txt --epochs 1 " in page
    assert str(first.model) in page
    named = run("production")
    assert (named.name, named.cached, named.model) == ("production", named.stages, first.model)
    assert run(None).name == "production"
    assert lexloom.load_word_vectors(first.name).words == lexloom.load_word_vectors("production").words
    capsys.readouterr()
    other = run("production", window=2)
    said = f"production moved to this model from train_word2vec/{first.model.name[:8]}"
    assert said in capsys.readouterr().err
    assert find_model_folder("production") == other.model
    assert find_model_folder(first.name) == first.model


def published() -> dict[str, str | None]:
    """ID -> key of the artifacts that Prefect's page shows."""
    with get_client(sync_client=True) as client:
        return {str(artifact.id): artifact.key for artifact in client.read_artifacts()}


def test_prefects_page_shows_the_training_the_report_and_a_table_of_the_stages(small: Small) -> None:
    before = published()
    small(epochs=2)  # a curve has at least two points
    new = {key for artifact, key in published().items() if artifact not in before}
    assert new == {"training", "training-curve", "report", "stages"}


def test_the_command_prints_a_line_for_each_stage_and_one_json_object(
    prefect_server: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)
    (tmp_path / "text.txt").write_text(TEXT)
    flags = ["--source", "text.txt", "--dim", "16", "--epochs", "1"]
    assert main(["word2vec", *flags, "--store", "elsewhere", "--json"]) == 0
    printed, said = capsys.readouterr()
    outcome = json.loads(printed)
    assert set(outcome) == {"flow", "name", "model", "report", "metrics", "stages", "cached", "seconds"}
    assert (outcome["flow"], outcome["stages"], outcome["cached"]) == ("word2vec", 8, 0)
    assert Path(outcome["model"]).is_absolute()
    assert Path(outcome["model"]).is_relative_to(tmp_path / "elsewhere")
    assert Path(outcome["report"]).is_file()
    lines = said.splitlines()
    assert lines[0] == "lexloom word2vec · store elsewhere"
    assert f"model   {outcome['name']}  {Path(outcome['model']).relative_to(tmp_path)}" in lines
    (chosen,) = [line for line in lines if line.startswith("training ")]
    assert chosen.split(maxsplit=1)[1].startswith("1 worker, ")
    assert " on this machine (auto: " in chosen
    assert [line.split()[0] for line in lines[1:10] if line != chosen] == STAGES


def test_the_number_of_epochs_is_resolved_before_the_key(small: Small) -> None:
    automatic, _ = small(epochs="auto")
    config = json.loads((automatic.model / "config.json").read_text())
    assert config["epochs"] == MAX_AUTO_EPOCHS  # of so few pairs
    again, built = small(epochs=MAX_AUTO_EPOCHS)
    assert (again.model, built) == (automatic.model, [])
