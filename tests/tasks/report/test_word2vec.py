"""The report of word vectors: one file without scripts or external resources, with the run's figures."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.display.formatting import duration, short, size
from lexloom.tasks.evaluate.word2vec import Evaluation, Neighbour, Neighbours
from lexloom.tasks.evaluate.word_scores import AnalogyScore, SimilarityScore
from lexloom.tasks.report.sections import flatten, lineage
from lexloom.tasks.report.word2vec import ReportConfig, markdown, report_word2vec
from lexloom.tasks.store.artifacts import Artifact, InputEntry, Manifest, Store, Summary, list_files, now

WORDS = ["the", "<script>alert(1)</script>", "peace", "a|b", "naïve"]
COUNTS = [1000, 300, 20, 5, 5]
METRICS = {
    "loss": 0.2345,
    "epochs": 2,
    "examples": 4_000_000,
    "examples_per_second": 2_500_000,
    "seconds": 75.4,
    "workers": 2,
    "stop_reason": "max_epochs",
    "something_else": {"nobody": "knows"},
    "history": [
        {"step": i, "epoch": i // 5, "examples": i * 400_000, "loss": 3 / i, "learning_rate": 0.025 / i}
        for i in range(1, 11)
    ],
}
EVALUATION = Evaluation(
    neighbours=[
        Neighbours(word=WORDS[1], count=300, neighbours=[Neighbour(word="a|b", count=5, similarity=0.75)])
    ],
    similarity=[SimilarityScore(name="wordsim353", pairs=353, scored=300, spearman=0.3217)],
    analogies=[
        AnalogyScore(
            name="questions",
            questions=40,
            scored=20,
            correct=5,
            sections=[AnalogyScore(name="<capitals>", questions=40, scored=20, correct=5)],
        )
    ],
)


@pytest.fixture
def made(store: Store) -> Callable[..., list[Artifact]]:
    """Artifacts with their manifests in the store: corpus -> vocabulary -> pairs -> model -> evaluation."""
    clock = iter(range(100))
    start = now()

    def put(
        stage: str, inputs: list[Artifact], files: Callable[[Path], Any], source: Any = None, **summary: Any
    ) -> Artifact:
        building = store.new_folder(stage, "k")
        files(building)
        entries = [InputEntry(name=entry.stage, stage=entry.stage, key=entry.key) for entry in inputs]
        if source:
            entries.append(InputEntry(name="source", stage="", key="s", description=source))
        manifest = Manifest(
            stage=stage,
            version=1,
            key=f"{stage}-key",
            created=start + timedelta(seconds=next(clock)),
            seconds=61.0,
            why=[],
            config={"window": 5, "note": "<&>"},
            inputs=entries,
            files=list_files(building),
            summary=Summary(unit_in="words", unit="rows", **summary),
            versions={"torch": "2.13.0"},
        )
        return store.commit(building, manifest)

    def run(
        metrics: dict[str, Any] = METRICS, evaluation: Evaluation = EVALUATION, words: list[str] = WORDS
    ) -> list[Artifact]:
        vectors = np.random.default_rng(0).normal(size=(len(words), 4)).astype(np.float32)

        def model_files(folder: Path) -> None:
            WordVectors(words, vectors).save(folder)
            (folder / "metrics.json").write_text(json.dumps(metrics))

        table = pa.table({"word": words, "count": COUNTS[: len(words)]})
        source = {"files": [{"name": "one.txt"}, {"name": "two.txt"}]}
        corpus = put("corpus", [], lambda folder: None, source, rows_in=9, rows=9)
        vocabulary = put(
            "vocabulary",
            [corpus],
            lambda folder: pq.write_table(table, folder / "vocabulary.parquet"),
            rows_in=1330,
            rows=len(words),
            dropped={"words below min_count": 17},
        )
        pairs = put("pairs", [vocabulary], lambda folder: None, rows_in=1330, rows=2_000_000)
        model = put("train", [pairs, vocabulary], model_files, rows_in=2_000_000, rows=len(words))
        scores = put(
            "evaluate",
            [model, vocabulary],
            lambda folder: (folder / "evaluation.json").write_text(evaluation.model_dump_json()),
            rows_in=len(words),
            rows=2,
        )
        return [model, scores, vocabulary]

    return run


class Text(HTMLParser):
    """Collects a page's tags and its visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "line", "circle", "rect", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "rect", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += f"{data} "


def page_of(build: Callable[..., Artifact], artifacts: list[Artifact], **options: Any) -> str:
    made = build(report_word2vec, *artifacts, config=ReportConfig(**options))
    [file] = made.files("*")
    assert file.name == "report.html"
    return file.read_text(encoding="utf-8")


# what a reader finds


def test_the_figures_of_the_run_are_on_the_page(build, made):
    text = " ".join(Text(page_of(build, made(), title="Speeches & more")).text.split())
    assert "Speeches & more" in text
    for figure in (
        "5 words",
        "2M pairs",
        "0.2345 loss, last epoch",
        "2.5M pairs per second",
        "1 min 15 s",
        "2 workers",
    ):
        assert figure in text
    assert "0.322 wordsim353" in text
    assert "0.250 questions" in text
    assert "300 of 353 pairs" in text
    assert "5 of 20" in text
    assert "peace" in text


def test_every_stage_stands_there_with_what_it_dropped_and_how_it_was_configured(build, made):
    text = " ".join(Text(page_of(build, made())).text.split())
    stages = text[text.index("Stages") : text.index("Configuration")]
    order = [stages.index(name) for name in ("corpus", "vocabulary", "pairs", "train", "evaluate")]
    assert order == sorted(order)
    assert "1,330 words 5 rows 17 words below min_count" in stages
    assert "1 min 1 s" in stages
    configuration = text[text.index("Configuration") :]
    assert "window 5" in configuration
    assert "note <&>" in configuration
    assert "source.files one.txt, two.txt" in configuration
    assert "torch 2.13.0" in configuration


def test_loss_and_learning_rate_are_drawn_with_their_epochs(build, made):
    page = page_of(build, made())
    assert page.count('class="curve"') == 3  # loss, learning rate, word frequencies
    assert "2M pairs · loss (smoothed) 0.6" in page
    assert "2M pairs · learning rate 0.005" in page
    assert "epoch 2" in page


def test_validation_and_times_are_shown(build, made):
    losses = [3.0, 2.0, 2.5]
    metrics = METRICS | {
        "stop_reason": "patience",
        "best_step": 20,
        "scores": [
            {"step": 10 * i, "examples": 1_000_000 * i, "loss": loss} for i, loss in enumerate(losses, 1)
        ],
        "seconds": 100.0,
        "compute_seconds": 60.0,
        "sync_seconds": 25.0,
    }
    page = page_of(build, made(metrics=metrics))
    text = " ".join(Text(page).text.split())
    assert "2M pairs · validation loss 2" in page
    assert "no longer improved. The saved model is that of step 20, with the lowest validation loss." in text
    assert "computation 1 min 0 s synchronization 25.0 s other 15.0 s total 1 min 40 s" in text


def test_the_page_needs_nothing_but_itself(build, made):
    page = page_of(build, made())
    parsed = Text(page)
    assert not parsed.open
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name in ("src", "href") or name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_words_cannot_become_markup(build, made):
    page = page_of(build, made(), title="<img src=x onerror=1>")
    assert "<script" not in page
    assert "<img" not in page
    assert "<capitals>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


# when there is little to say


def test_sections_without_content_are_left_out(build, made):
    bare = Evaluation(neighbours=[], similarity=[], analogies=[])
    artifacts = made(metrics={"history": []}, evaluation=bare, words=["only"])
    headings = re.findall("<h2>(.*?)</h2>", page_of(build, artifacts))
    assert headings == ["Use this model", "Stages", "Configuration"]


def test_a_loss_that_is_no_number_does_not_break_the_page(build, made):
    history = [
        {"examples": 1, "loss": 1.0},
        {"examples": 2, "loss": float("nan")},
        {"examples": 3, "loss": 0.5},
    ]
    page = page_of(build, made(metrics={"loss": float("nan"), "history": history}))
    assert page.count('class="curve"') == 2
    assert "loss, last epoch" in page


def test_artifacts_without_manifests_are_told_of_as_far_as_they_go(build, made):
    artifacts = made()
    for artifact in artifacts:
        (artifact.folder / "manifest.json").unlink()
    headings = re.findall("<h2>(.*?)</h2>", page_of(build, artifacts))
    assert "Nearest neighbours" in headings
    assert "Stages" not in headings


def test_lineage_is_all_that_went_in_once_and_in_order(made):
    model, scores, vocabulary = made()
    stages = [manifest.stage for manifest in lineage(model, scores, vocabulary)]
    assert stages == ["corpus", "vocabulary", "pairs", "train", "evaluate"]


# markdown


def test_markdown_has_the_same_figures(made):
    text = markdown(*made(), ReportConfig(title="Speeches"))
    assert text.startswith("# Speeches\n")
    assert "| loss, last epoch | 0.2345 |" in text
    assert "| wordsim353 | rank correlation | 0.322 | 0.213 to 0.422 | 300 of 353 pairs |" in text
    assert "| vocabulary | 1,330 words | 5 rows | 17 words below min\\_count |" in text
    assert "<script>" not in text
    assert "a\\|b 0.75" in text  # a word with a bar does not end its cell
    for line in text.splitlines():
        if line.startswith("| &lt;script"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3


# figures


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (950, "950"), (12_345, "12.3k"), (999_900, "1M"), (103_975_836, "104M"), (2.5e9, "2.5B")],
)
def test_short_numbers(value, expected):
    assert short(value) == expected


def test_sizes_and_durations():
    counts = (12, 3_400, 999_999, 7_890_000_000, 5_000_000_000_000)
    assert [size(count) for count in counts] == ["12 B", "3.4 kB", "1 MB", "7.89 GB", "5,000 GB"]
    assert [duration(s) for s in (0.04, 59.94, 59.97, 75.4, 3_599.8, 9_000)] == [
        *("0.0 s", "59.9 s", "1 min 0 s", "1 min 15 s", "1 h 0 min", "2 h 30 min")
    ]


def test_nested_values_have_dotted_names():
    values = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": [{"name": "x"}] * 10, "f": True}
    assert dict(flatten(values)) == {
        "a.b": "1",
        "a.c": "1, 2",
        "d": "–",
        "e": "x, x, x, x, x, x, x, x, and 2 more",
        "f": "yes",
    }


def test_sets_without_known_words_have_no_tile_and_no_row_but_a_reason(build, made):
    unknown = EVALUATION.model_copy(
        update={
            "similarity": [SimilarityScore(name="wordsim353", pairs=353, scored=0, spearman=None)],
            "analogies": [
                AnalogyScore(
                    name="questions",
                    questions=40,
                    scored=0,
                    correct=0,
                    sections=[AnalogyScore(name="capitals", questions=40, scored=0, correct=0)],
                )
            ],
        }
    )
    artifacts = made(evaluation=unknown)
    text = Text(page_of(build, artifacts)).text
    assert "wordsim353 and questions can't be scored, because the vocabulary contains too few of the" in text
    assert text.count("wordsim353") == 1
    assert "capitals" not in text
    assert "wordsim353 and questions can't be scored" in markdown(*artifacts, config=ReportConfig())


def test_the_map_shows_the_content_words(build, made):
    found = EVALUATION.model_copy(update={"content_words": ["peace", "naïve"]})
    page = page_of(build, made(evaluation=found))
    assert "The 2 most frequent content words" in page
    assert page.count('<g class="word">') == 2


def test_a_count_of_one_is_singular(build, made):
    text = Text(page_of(build, made(metrics=METRICS | {"epochs": 1, "workers": 1}))).text
    assert re.search(r"\b1\s+epoch\b", text)
    assert re.search(r"\b1\s+worker\b", text)
