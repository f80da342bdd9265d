"""Run stages of the word2vec flow, each in a process of its own, with this or an older checkout of Lexloom.

An older checkout needs stages and configurations with the same names and, for training, the fields that the
caller sets.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
Stored = dict[str, Any]  # an artifact as JSON values: only its own checkout reads it


class Ran(NamedTuple):
    """A stage that was run.

    Attributes:
        seconds: of the stage alone, without the start of the process.
        peak_megabytes: peak memory of its process.
    """

    artifact: Stored
    seconds: float
    peak_megabytes: float

    @property
    def facts(self) -> dict[str, Any]:
        return self.artifact["summary"]["facts"]

    @property
    def folder(self) -> Path:
        return Path(self.artifact["folder"])


class Checkout:
    """A checkout of Lexloom, and a store for its artifacts."""

    def __init__(self, folder: Path, store: Path) -> None:
        if not (folder / "lexloom" / "__init__.py").exists():
            raise SystemExit(f"{folder} has no package lexloom: give the folder of a checkout of Lexloom")
        self._folder, self._store = folder.resolve(), store

    def run(self, stage: str, *inputs: Ran, scratch: Path | None = None, **config: Any) -> Ran:
        """Run a stage; `corpus` has no inputs, but a `source`."""
        request = {
            "stage": stage,
            "store": str(self._store),
            "inputs": [each.artifact for each in inputs],
            "config": config,
            "scratch": None if scratch is None else str(scratch),
        }
        command = [sys.executable, __file__, json.dumps(request)]
        environment = os.environ | {"PYTHONPATH": str(self._folder)}
        process = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return Ran(**json.loads(process.stdout.splitlines()[-1]))

    def prepare(self, source: Path, min_count: int) -> dict[str, Ran]:
        """Run the stages up to those that depend on a seed, from the texts of a file."""
        text = self.run("corpus", source=str(source))
        vocabulary = self.run("vocabulary", text, min_count=min_count)
        tokens = self.run("tokens", text, vocabulary)
        noise = self.run("negative_sampling", vocabulary)
        return {"corpus": text, "vocabulary": vocabulary, "tokens": tokens, "negative_sampling": noise}


def run_here(request: dict[str, Any]) -> Ran:
    """Run a stage in this process, with the Lexloom that it imports."""
    from measure import peak_megabytes, stage_runner

    from lexloom.tasks.corpus import CorpusConfig, corpus, locate_source
    from lexloom.tasks.negative_sampling import NoiseConfig, negative_sampling
    from lexloom.tasks.pairs import PairsConfig, pairs
    from lexloom.tasks.store.artifacts import Artifact
    from lexloom.tasks.tokens import TokensConfig, tokens
    from lexloom.tasks.train.word2vec import TrainWord2VecConfig, train_word2vec
    from lexloom.tasks.vocabulary import VocabularyConfig, vocabulary

    stages: dict[str, tuple[Any, Any]] = {
        "corpus": (corpus, CorpusConfig),
        "vocabulary": (vocabulary, VocabularyConfig),
        "tokens": (tokens, TokensConfig),
        "negative_sampling": (negative_sampling, NoiseConfig),
        "pairs": (pairs, PairsConfig),
        "train_word2vec": (train_word2vec, TrainWord2VecConfig),
    }
    stage, make_config = stages[request["stage"]]
    config = make_config(**request["config"])
    inputs = [Artifact.model_validate(each) for each in request["inputs"]] or [locate_source(config)]
    extra = {} if request["scratch"] is None else {"scratch": Path(request["scratch"])}
    begun = time.perf_counter()
    artifact = stage_runner(Path(request["store"]))(stage, *inputs, config=config, **extra)
    seconds = time.perf_counter() - begun
    return Ran(artifact.model_dump(mode="json"), seconds, peak_megabytes())


if __name__ == "__main__":
    print(json.dumps(run_here(json.loads(sys.argv[1]))._asdict()))
