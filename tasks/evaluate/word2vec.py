"""Evaluation of word vectors: nearest neighbours of some words, and scores on similarity and analogies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from rich.text import Text

from lexloom.models.registry import load_model
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.evaluate.content_words import content_words, count_frequent
from lexloom.tasks.evaluate.evaluation_sets import (
    EvaluationSets,
    find_sets,
    read_analogies,
    read_similarity,
)
from lexloom.tasks.evaluate.word_scores import AnalogyScore, Scorer, SimilarityScore, SolvedAnalogy
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary
from lexloom.tasks.store.stage import stage
from lexloom.tasks.tokens import training_files
from lexloom.tasks.vocabulary import read_vocabulary

FILE = "evaluation.json"
# Shown by default: the EXAMPLES of the EXAMPLES_AMONG most frequent content words that have the highest mean
# similarity to their CLEAR nearest neighbours.
EXAMPLES, EXAMPLES_AMONG, CLEAR = 8, 150, 5
SHOWN_ANALOGIES = 3


class EvaluateConfig(BaseModel):
    """Words to show neighbours of, and evaluation sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neighbours_of: list[str] | None = Field(
        None,
        description="Words for which to list neighbours; if not given, the frequent content words whose"
        " nearest neighbours are most similar to them.",
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
    chosen: bool = False  # the words of `neighbours` were chosen, not requested
    content_words: list[str] = []  # frequent ones, most frequent first

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
    for score in evaluation.analogies:
        if examples := clearest_analogies(score):
            lines.append(Text(f"\nanalogies: {describe_analogies(score)}", style="bold"))
            lines += [Text(describe_analogy(each)) for each in examples]
    return Text("\n").join(lines)


def clearest_analogies(score: AnalogyScore) -> list[SolvedAnalogy]:
    """Return the correct answers with the largest leads, each from another section."""
    examples = [section.example for section in score.sections if section.example is not None]
    return sorted(examples, key=lambda example: -example.lead)[:SHOWN_ANALOGIES]


def describe_analogies(score: AnalogyScore) -> str:
    correct = f"{score.correct:,} of {counted(score.scored, 'questions')} answered correctly"
    return f"{correct} ({score.accuracy or 0:.1%}), with the largest margin:"


def describe_analogy(example: SolvedAnalogy) -> str:
    a, b, c, d = example.words
    return f"{a} is to {b} as {c} is to {d}"


@stage(version=3)
def evaluate_word2vec(
    model: Artifact,
    vocabulary: Artifact,
    tokens: Artifact,
    sets: EvaluationSets,
    config: EvaluateConfig,
    out: Path,
) -> Summary:
    """Write `evaluation.json`: nearest neighbours, and a score for each evaluation set.

    The content words are selected from the text, `tokens`. Requested words that are unknown are counted.

    Raises:
        ValueError: a set is malformed (file and line).
    """
    vectors = load_model(model.folder, "neighbours")
    _, counts = read_vocabulary(vocabulary)
    frequent = count_frequent(counts)
    scorer = Scorer(vectors, config.restrict, frequent)
    similarity = [
        scorer.similarity(entry.name, read_similarity(entry.path)) for entry in sets.of_kind("similarity")
    ]
    analogies = [
        scorer.analogies(entry.name, read_analogies(entry.path)) for entry in sets.of_kind("analogies")
    ]
    found = [vectors.words[word_id] for word_id in content_words(training_files(tokens), counts)]
    contents = [word for word in found if len(word) > 1] or found  # without initials and abbreviations
    if config.neighbours_of is None:
        unknown: list[str] = []
        shown = clearest_neighbours(vectors, contents[:EXAMPLES_AMONG], frequent, config.neighbours)
    else:
        known = [vectors.spelling(word) for word in config.neighbours_of if word in vectors]
        unknown = [word for word in config.neighbours_of if word not in vectors]
        shown = dict(zip(known, vectors.neighbours(known, config.neighbours), strict=True))
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
            for word, found in shown.items()
        ],
        unknown=unknown,
        similarity=similarity,
        analogies=analogies,
        chosen=config.neighbours_of is None,
        content_words=contents,
    )
    (out / FILE).write_text(evaluation.model_dump_json(indent=2) + "\n", encoding="utf-8")
    facts: dict[str, JsonValue] = dict(evaluation.scores())
    if not sets.sets:
        facts["scores"] = "none: no evaluation sets found; install gensim, or set --similarity or --analogies"
    return Summary(
        rows_in=len(vectors),
        unit_in="words",
        rows=len(shown) + len(sets.sets),
        unit="results",
        dropped={"requested words not in the vocabulary": len(unknown)},
        facts=facts,
    )


def clearest_neighbours(
    vectors: WordVectors, words: Sequence[str], frequent: int, k: int
) -> dict[str, list[tuple[str, float]]]:
    """Return EXAMPLES of `words` and the k nearest neighbours of each, among the first `frequent` words.

    Words whose nearest neighbours have the highest mean cosine similarity come first. No word is a neighbour
    of another one, and no two words share a neighbour, so that the examples cover different topics.
    """
    common = WordVectors(vectors.words[:frequent], vectors.vectors[:frequent])
    nearest = dict(zip(words, common.neighbours(words, max(k, CLEAR)), strict=True))

    def clarity(word: str) -> float:
        return float(np.mean([cosine for _, cosine in nearest[word][:CLEAR]] or [0.0]))

    chosen: dict[str, list[tuple[str, float]]] = {}
    taken: set[str] = set()
    for word in sorted(words, key=clarity, reverse=True):
        around = {word, *(near for near, _ in nearest[word][:CLEAR])}
        if len(chosen) < EXAMPLES and not around & taken:
            chosen[word] = nearest[word][:k]
            taken |= around
    return chosen
