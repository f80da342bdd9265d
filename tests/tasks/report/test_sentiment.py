"""The report of a sentiment classifier: metrics next to the baseline's, and its mistakes."""

import json
import re
from collections.abc import Callable

import numpy as np
import pytest

from lexloom.tasks.evaluate.classification_scores import Scores, compute_scores
from lexloom.tasks.evaluate.sentiment import Mistake, SentimentEvaluation
from lexloom.tasks.report.sentiment import ReportSentimentConfig, markdown, report_sentiment, short_name
from lexloom.tasks.store.artifacts import Artifact, InputEntry, Manifest, Store, Summary, list_files, now
from tests.tasks.report.test_language_model import METRICS

BACKBONE = "owner/some-encoder (package some-encoder 1.0)"
LONG = "word " * 300 + "<i>"
MISTAKES = [
    Mistake(text="I <b>loathe</b> it | truly", label="negative", predicted="positive", score=0.987),
    Mistake(text=LONG, label="positive", predicted="negative", score=0.9),
]

Build = Callable[..., Artifact]
Make = Callable[..., list[Artifact]]


def scores_of(confusion: list[list[int]], certainty: float = 0.9) -> Scores:
    """Return constant scores for as many reviews as the confusion matrix has."""
    labels = len(confusion)
    truth, rows = [], []
    for true, counts in enumerate(confusion):
        for found, count in enumerate(counts):
            row = np.full(labels, (1 - certainty) / (labels - 1))
            row[found] = certainty
            truth += [true] * count
            rows += [row] * count
    names = ["negative", "positive"] if labels == 2 else [f"label {n}" for n in range(labels)]
    return compute_scores(np.array(rows), np.array(truth), names)


MODEL = scores_of([[90, 10], [20, 80]])  # 170 of 200 right
RIVAL = scores_of([[80, 20], [20, 80]])


@pytest.fixture
def made(store: Store) -> Make:
    """A model, its features and its evaluation in the store."""

    def put(stage: str, parents: list[str], content: dict[str, str], **facts: object) -> Artifact:
        building = store.new_folder(stage, "k")
        for name, text in content.items():
            (building / name).write_text(text)
        manifest = Manifest(
            stage=stage,
            version=1,
            key=f"{stage}-key",
            created=now(),
            seconds=4.6,
            why=[],
            config={"note": "<&>"},
            inputs=[InputEntry(name=parent, stage=parent, key=f"{parent}-key") for parent in parents],
            files=list_files(building),
            summary=Summary(rows_in=1, unit_in="rows", rows=1, unit="rows", facts=facts),
            versions={"torch": "2.13.0"},
        )
        return store.commit(building, manifest)

    def make(
        model: Scores = MODEL,
        baseline: Scores | None = RIVAL,
        mistakes: list[Mistake] = MISTAKES,
        met_before: int = 0,
    ) -> list[Artifact]:
        evaluation = SentimentEvaluation(
            model=model,
            baseline=baseline,
            baseline_seconds=None if baseline is None else 1.25,
            reviews=200,
            met_before=met_before,
            reviews_per_second=1234.5,
            mistakes=mistakes,
        )
        put("frozen_features", [], {}, train=1800)
        return [
            put(
                "train_sentiment",
                ["frozen_features"],
                {"metrics.json": json.dumps(METRICS)},
                backbone=BACKBONE,
            ),
            put("evaluate_sentiment", ["train_sentiment"], {"evaluation.json": evaluation.model_dump_json()}),
        ]

    return make


def page_of(build: Build, artifacts: list[Artifact]) -> str:
    [file] = build(report_sentiment, *artifacts, config=ReportSentimentConfig()).files("*")
    assert file.name == "report.html"
    return file.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    return " ".join(re.sub("<[^>]+>", " ", page).split())


def test_figures_are_shown_with_those_of_the_baseline(build: Build, made: Make) -> None:
    """Training took 75.4 s and features 4.6 s; the calibration error of a bin is |0.9 - accuracy|."""
    text = text_of(page_of(build, made()))
    for tile in ("85.0% accuracy", "0.050 calibration error", "1,800 training reviews", "2 labels"):
        assert tile in text
    assert "1 min 15 s training time some-encoder encoder" in text
    assert "baseline by 5.0 percentage points of accuracy. Evaluated on 200 held-out reviews" in text
    assert "classifier 85.0% 79.4% to 89.3% 0.850 0.850 0.050 1 min 20 s" in text
    assert "bag-of-words baseline 80.0% 73.9% to 85.0% 0.800 0.800 0.100 1.2 s" in text
    assert BACKBONE in text


def test_excluded_reviews_are_counted(build: Build, made: Make) -> None:
    text = text_of(page_of(build, made(met_before=1200)))
    assert "Evaluated on 200 held-out reviews (without 1,200 that occur in the training data) at 1," in text


def test_a_better_baseline_is_reported(build: Build, made: Make) -> None:
    text = text_of(page_of(build, made(model=RIVAL, baseline=MODEL)))
    assert "does NOT beat the bag-of-words baseline: its accuracy is 5.0 percentage points lower." in text


def test_without_a_baseline_none_is_mentioned(build: Build, made: Make) -> None:
    text = text_of(page_of(build, made(baseline=None)))
    assert "There is no baseline for comparison." in text
    assert "bag-of-words" not in text


def test_the_confusion_matrix_has_counts_and_shares_of_the_true_label(build: Build, made: Make) -> None:
    page = page_of(build, made())
    assert "negative 90 90.0% 10 10.0%" in text_of(page)
    assert "positive 20 20.0% 80 80.0%" in text_of(page)
    assert re.findall(r'class="cell" style="--share:([\d.]+)"', page) == ["0.900", "0.100", "0.200", "0.800"]


def test_of_many_labels_the_most_frequent_confusions_are_listed(build: Build, made: Make) -> None:
    confusion = np.eye(12, dtype=int) * 5
    confusion[3, 7], confusion[1, 0] = 4, 2
    page = page_of(build, made(model=scores_of(confusion.tolist()), baseline=None))
    assert 'class="matrix"' not in page
    assert "true predicted reviews label 3 label 7 4 label 1 label 0 2 " in text_of(page)


def test_each_label_has_its_precision_and_recall(build: Build, made: Make) -> None:
    """Negative: 90 of 110 predicted, 90 of 100 actual."""
    text = text_of(page_of(build, made()))
    assert "negative 100 0.818 0.900 0.857" in text
    assert "positive 100 0.889 0.800 0.842" in text


def test_calibration_has_hints(build: Build, made: Make) -> None:
    assert "200 reviews · score 90.0% · accuracy 85.0%" in text_of(page_of(build, made()))


def test_mistakes_are_escaped_and_long_ones_folded(build: Build, made: Make) -> None:
    page = page_of(build, made())
    assert "true label <b>negative</b>, predicted <b>positive</b> (98.7%)" in page
    assert "I &lt;b&gt;loathe&lt;/b&gt; it | truly" in page
    shown, rest = re.findall(r'<p class="sample">((?:word ?)+|[^<]*&lt;i&gt;)(?: …)?</p>', page)
    assert len(shown) <= 420
    assert f"{shown} {rest}".replace("&lt;i&gt;", "<i>").split() == LONG.split()


def test_without_a_mistake_there_is_no_section_of_them(build: Build, made: Make) -> None:
    assert "Most confident mistakes" not in page_of(build, made(mistakes=[]))


def test_markdown_has_the_same_figures(made: Make) -> None:
    text = markdown(*made(), ReportSentimentConfig(title="Films"))
    assert text.startswith("# Films\n")
    assert "beats the bag-of-words baseline by 5.0 percentage points of accuracy." in text
    assert "| bag-of-words baseline | 80.0% | 73.9% to 85.0% | 0.800 | 0.800 | 0.100 | 1.2 s |" in text
    assert "| negative | 100 | 0.818 | 0.900 | 0.857 |" in text
    assert (
        "> true label **negative**, predicted **positive** (98.7%): I &lt;b>loathe&lt;/b> it \\| truly"
        in text
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (BACKBONE, "some-encoder"),
        ("owner/name@v2", "name@v2"),
        ("/models/mine/", "mine"),
        ("mine", "mine"),
    ],
)
def test_a_backbone_is_called_by_its_own_name(name: str, expected: str) -> None:
    assert short_name(name) == expected
