"""Train skip-gram with an older checkout of Lexloom, for benchmarks/word2vec.py."""

import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from checkout import Checkout, Ran
from measure import commit
from safetensors.numpy import load_file
from word2vec_peers import MIN_COUNT, NEGATIVES, SUBSAMPLE, WINDOW, Trained


class Previous:
    """An older checkout of Lexloom, whose models have whole tables, on the documents of a Parquet file."""

    def __init__(self, folder: Path, texts: Path, work: Path) -> None:
        self.commit = commit(folder)
        self._checkout = Checkout(folder, work / "previous")
        self._before = self._checkout.prepare(texts, MIN_COUNT)
        self._words = pq.read_table(self._before["vocabulary"].folder / "vocabulary.parquet")["word"]
        self._seconds = sum(stage.seconds for stage in self._before.values())
        self._pairs: tuple[int, Ran] | None = None  # of the last seed

    def _draw_pairs(self, seed: int) -> Ran:
        if self._pairs is None or self._pairs[0] != seed:
            inputs = self._before["tokens"], self._before["vocabulary"]
            options = {"window": WINDOW, "subsample": SUBSAMPLE, "seed": seed}
            self._pairs = seed, self._checkout.run("pairs", *inputs, **options)
        return self._pairs[1]

    def train(
        self, *, dim: int, seed: int, threads: int, learning_rate: float, min_learning_rate: float
    ) -> Trained:
        pairs = self._draw_pairs(seed)
        with tempfile.TemporaryDirectory() as scratch:
            model = self._checkout.run(
                *("train_word2vec", pairs, self._before["negative_sampling"], self._before["vocabulary"]),
                scratch=Path(scratch),
                epochs=1,
                dim=dim,
                negatives=NEGATIVES,
                seed=seed,
                runner="local",
                workers=1,
                threads=threads,
                learning_rate=learning_rate,
                min_learning_rate=min_learning_rate,
            )
            tables = load_file(max(Path(scratch).rglob("step-*/model.safetensors")))
        return Trained(
            self._words.to_pylist(),
            tables["vectors"][:, :dim],
            tables["contexts"][:, :dim],
            model.facts["seconds"],
            self._seconds + pairs.seconds + model.seconds,
            {"waiting_for_data_seconds": model.facts["data_seconds"]},
        )
