"""Evaluation of word vectors: nearest neighbours of some words, and scores on similarity and analogies."""

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from rich.text import Text

from lexloom.models.registry import load_model
from lexloom.tasks.evaluate.evaluation_sets import (
    EvaluationSets,
    find_sets,
    read_analogies,
    read_similarity,
)
from lexloom.tasks.evaluate.word_scores import AnalogyScore, Scorer, SimilarityScore
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary
from lexloom.tasks.store.stage import stage
from lexloom.tasks.vocabulary import read_vocabulary

FILE = "evaluation.json"
EXAMPLE_RANKS, EXAMPLES = slice(100, 500), 8  # the words whose neighbours are shown by default


class EvaluateConfig(BaseModel):
    """Words to show neighbours of, and evaluation sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neighbours_of: list[str] | None = Field(
        None, description="Words for which to list neighbours; if not given, eight frequent words."
    )
    neighbours: int = Field(8, ge=1, le=100, description="Number of neighbours to list for each word.")
    similarity: Annotated[list[Path] | None, RunOnly()] = Field(
        None,
        description="Word-similarity files with lines 'word word score'; if not given, WordSim-353 and"
        " SimLex-999 if gensim is installed.",
    )
    analogies: Annotated[list[Path] | None, RunOnly()] = Field(
        None,
        description="Analogy files with ': section' lines and lines of four words; if not given, Google's"
        " analogies if gensim is installed.",
    )
    restrict: int = Field(300_000, ge=1, description="Restrict the scores to this many most frequent words.")


def locate_sets(config: EvaluateConfig) -> EvaluationSets:
    """Find the config's evaluation sets, an input of `evaluate_word2vec`; raise the errors of `find_sets`."""
    return find_sets(config.similarity, config.analogies)


# the results


class Neighbour(BaseModel):
    word: str
    count: int
    similarity: float


class Neighbours(BaseModel):
    """A word and the words with the highest cosine similarity."""

    word: str
    count: int
    neighbours: list[Neighbour]


class Evaluation(BaseModel):
    """The content of `evaluation.json`."""

    neighbours: list[Neighbours]
    unknown: list[str] = []  # requested words that are not in the vocabulary
    similarity: list[SimilarityScore]
    analogies: list[AnalogyScore]

    def scores(self) -> dict[str, float | None]:
        """Return the score of each set: Spearman's correlation, or accuracy."""
        figures = {score.name: score.spearman for score in self.similarity}
        figures |= {score.name: score.accuracy for score in self.analogies}
        return {name: None if figure is None else round(figure, 4) for name, figure in figures.items()}


def read_evaluation(artifact: Artifact) -> Evaluation:
    return Evaluation.model_validate_json((artifact.folder / FILE).read_bytes())


def highlights(artifact: Artifact, width: int) -> Text:
    """Return the evaluation summary that a run prints, in lines of at most `width` characters."""
    evaluation = read_evaluation(artifact)
    found = evaluation.neighbours
    longest = max(map(len, [*(entry.word for entry in found), *evaluation.unknown]), default=0)
    lines = [Text("\nnearest neighbours, by cosine similarity", style="bold")]
    for entry in found:
        line = Text(f"{entry.word:<{longest}}", style="bold")
        for neighbour in entry.neighbours:
            cell = Text.assemble(f"  {neighbour.word} ", (f"{neighbour.similarity:.2f}", "dim"))
            if line.cell_len + cell.cell_len <= width:
                line = Text.assemble(line, cell)
        lines.append(line)
    for word in evaluation.unknown:
        lines.append(Text.assemble((f"{word:<{longest}}", "bold"), ("  is not in the vocabulary", "dim")))
    return Text("\n").join(lines)


@stage(version=2)
def evaluate_word2vec(
    model: Artifact, vocabulary: Artifact, sets: EvaluationSets, config: EvaluateConfig, out: Path
) -> Summary:
    """Write `evaluation.json`: nearest neighbours, and a score for each evaluation set.

    Requested words that are unknown are counted.

    Raises:
        ValueError: a set is malformed (file and line).
    """
    vectors = load_model(model.folder, "neighbours")
    _, counts = read_vocabulary(vocabulary)
    scorer = Scorer(vectors, config.restrict)
    similarity = [
        scorer.similarity(entry.name, read_similarity(entry.path)) for entry in sets.of_kind("similarity")
    ]
    analogies = [
        scorer.analogies(entry.name, read_analogies(entry.path)) for entry in sets.of_kind("analogies")
    ]
    words = config.neighbours_of if config.neighbours_of is not None else example_words(vectors.words)
    known = [vectors.spelling(word) for word in words if word in vectors]
    unknown = [word for word in words if word not in vectors]
    count_of = dict(zip(vectors.words, counts.tolist(), strict=True))
    evaluation = Evaluation(
        neighbours=[
            Neighbours(
                word=word,
                count=count_of[word],
                neighbours=[
                    Neighbour(word=near, count=count_of[near], similarity=round(cosine, 4))
                    for near, cosine in found
                ],
            )
            for word, found in zip(known, vectors.neighbours(known, config.neighbours), strict=True)
        ],
        unknown=unknown,
        similarity=similarity,
        analogies=analogies,
    )
    (out / FILE).write_text(evaluation.model_dump_json(indent=2) + "\n", encoding="utf-8")
    facts: dict[str, JsonValue] = dict(evaluation.scores())
    if not sets.sets:
        facts["scores"] = "none: no evaluation sets found; install gensim, or set --similarity or --analogies"
    return Summary(
        rows_in=len(vectors),
        unit_in="words",
        rows=len(known) + len(sets.sets),
        unit="results",
        dropped={"requested words not in the vocabulary": len(unknown)},
        facts=facts,
    )


def example_words(words: list[str]) -> list[str]:
    """Select eight words with informative neighbours, from the vocabulary alone.

    The most frequent words of any language are its function words, and frequent words are short (Zipf), so
    the examples are spread over the longer half of the words that follow. All models of a text get the same.
    """
    frequent = words[EXAMPLE_RANKS] or words
    median = float(np.median([len(word) for word in frequent]))
    longer = [word for word in frequent if len(word) > median] or frequent
    shown = min(EXAMPLES, len(longer))
    return [longer[i * len(longer) // shown] for i in range(shown)]
