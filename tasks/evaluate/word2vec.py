"""How good the word vectors are: neighbours to look at, word similarity and analogies to measure.

Scores are those of gensim's `evaluate_word_pairs` and `evaluate_word_analogies`: only the `restrict` most
frequent words take part, upper and lower case are the same, and what holds an unknown word is left out and
counted (coverage). Products run in batches of bounded size.
"""

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from rich.text import Text

from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.display import console
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary, digest_key
from lexloom.tasks.store.file_access import digest_file
from lexloom.tasks.store.stage import stage
from lexloom.tasks.vocabulary import read_vocabulary

FILE = "evaluation.json"
SCORES_AT_ONCE = 1 << 26  # float32: 256 MB
TELLING_RANKS = slice(100, 500)
TELLING_WORDS = 8
GENSIM_SETS = "test/test_data"
GENSIM_SIMILARITY = ("wordsim353.tsv", "simlex999.txt")
GENSIM_ANALOGIES = ("questions-words.txt",)

Kind = Literal["similarity", "analogies"]


class EvaluateConfig(BaseModel):
    """Words to show neighbours of, and evaluation sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neighbours_of: list[str] | None = Field(
        None, description="Words whose nearest neighbours to list; if not given, eight frequent words."
    )
    neighbours: int = Field(8, ge=1, le=100, description="Number of neighbours to list for each word.")
    similarity: Annotated[list[Path] | None, RunOnly()] = Field(
        None,
        description="Word-similarity files with lines of word, word, score; if not given, WordSim-353 and"
        " SimLex-999 if gensim is installed.",
    )
    analogies: Annotated[list[Path] | None, RunOnly()] = Field(
        None,
        description="Analogy files with ': section' lines and lines of four words; if not given, Google's"
        " analogies if gensim is installed.",
    )
    restrict: int = Field(
        300_000, ge=1, description="Number of most frequent words to which the scores are restricted."
    )


# the sets


class EvaluationSet(BaseModel):
    """A file of questions; its content counts, not where it lies."""

    name: str
    kind: Kind
    digest: str
    path: Path = Field(exclude=True)


class EvaluationSets(BaseModel):
    """The sets that a model is scored on: an input of `evaluate`, found by `locate_sets`."""

    sets: list[EvaluationSet]

    @property
    def key(self) -> str:
        return digest_key("evaluation sets", 1, self.model_dump(mode="json"), [])

    def file_digests(self) -> dict[str, str]:
        return {entry.name: entry.digest for entry in self.sets}

    def verify(self) -> None:
        for entry in self.sets:
            if digest_file(entry.path) != entry.digest:
                raise ValueError(f"{entry.path} changed during the run: run again once it is at rest")

    def of_kind(self, kind: Kind) -> list[EvaluationSet]:
        return [entry for entry in self.sets if entry.kind == kind]


def locate_sets(config: EvaluateConfig) -> EvaluationSets:
    """The files that the config names, or else those that come with gensim, or else none.

    Raises FileNotFoundError for a named file that isn't there, ValueError where two have one name.
    """
    sets = [
        *located("similarity", config.similarity, GENSIM_SIMILARITY),
        *located("analogies", config.analogies, GENSIM_ANALOGIES),
    ]
    names = [entry.name for entry in sets]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two evaluation files are called {', '.join(sorted(twice))}: rename one")
    return EvaluationSets(sets=sets)


def located(kind: Kind, named: list[Path] | None, with_gensim: Iterable[str]) -> Iterator[EvaluationSet]:
    if named is None:
        folder = gensim_folder()
        paths = [folder / name for name in with_gensim if (folder / name).is_file()] if folder else []
    else:
        paths = named
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"the {kind} file {path} is not there: correct its path, or leave it out")
        yield EvaluationSet(name=path.stem, kind=kind, digest=digest_file(path), path=path)


def gensim_folder() -> Path | None:
    """Where gensim keeps its evaluation sets; gensim itself is not imported."""
    spec = importlib.util.find_spec("gensim")
    return Path(spec.origin).parent / GENSIM_SETS if spec and spec.origin else None


def read_similarity(path: Path) -> list[tuple[str, str, float]]:
    """(word, word, score) of each line that is neither empty nor a comment (#).

    Raises ValueError for any other line.
    """
    judged = []
    for place, fields in fields_of(path):
        try:
            first, second, score = fields
            judged.append((first, second, float(score)))
        except ValueError:
            raise ValueError(f"{place}: not 'word word score': {' '.join(fields)[:80]!r}") from None
    return judged


def read_analogies(path: Path) -> dict[str, list[list[str]]]:
    """Section -> questions (a, b, c, d), read "a is to b as c is to d".

    Raises ValueError for a line that is neither empty, nor a comment (#), nor ': section', nor four words.
    """
    sections: dict[str, list[list[str]]] = {}
    questions = None
    for place, fields in fields_of(path):
        if fields[0] == ":":
            questions = sections.setdefault(" ".join(fields[1:]), [])
        elif questions is None:
            raise ValueError(
                f"{place}: a question before the first section: put ': name of the section' above"
            )
        elif len(fields) != 4:
            raise ValueError(f"{place}: {len(fields)} words instead of four: {' '.join(fields)[:80]!r}")
        else:
            questions.append(fields)
    return sections


def fields_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """('file:line', what stands there between white space) of each line that says something."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason}): convert the file") from error
            if (fields := line.split()) and not line.startswith("#"):
                yield f"{path}:{number}", fields


# the results


class Neighbour(BaseModel):
    word: str
    count: int
    similarity: float


class Neighbours(BaseModel):
    """A word and those whose vectors point most nearly the same way (cosine)."""

    word: str
    count: int
    neighbours: list[Neighbour]


class SimilarityScore(BaseModel):
    """Spearman's rank correlation of people's judgements and cosines; None where either is constant."""

    name: str
    pairs: int
    scored: int
    spearman: float | None

    @property
    def coverage(self) -> float:
        return self.scored / max(1, self.pairs)


class AnalogyScore(BaseModel):
    """How many questions were answered right; of a section, or of a whole file with its sections."""

    name: str
    questions: int
    scored: int
    correct: int
    sections: list["AnalogyScore"] = []

    @property
    def coverage(self) -> float:
        return self.scored / max(1, self.questions)

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.scored if self.scored else None


class Evaluation(BaseModel):
    """What `evaluation.json` holds."""

    neighbours: list[Neighbours]
    unknown: list[str] = []  # asked for, and none of the model's words
    similarity: list[SimilarityScore]
    analogies: list[AnalogyScore]

    def scores(self) -> dict[str, float | None]:
        """Each set's one figure: Spearman's correlation, or the share of right answers."""
        figures = {score.name: score.spearman for score in self.similarity}
        figures |= {score.name: score.accuracy for score in self.analogies}
        return {name: None if figure is None else round(figure, 4) for name, figure in figures.items()}


def read_evaluation(artifact: Artifact) -> Evaluation:
    return Evaluation.model_validate_json((artifact.folder / FILE).read_bytes())


def highlights(artifact: Artifact, width: int) -> Text:
    """What to show of an evaluation at the end of a run, in lines of at most `width` characters."""
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
        lines.append(Text.assemble((f"{word:<{longest}}", "bold"), ("  is none of the model's words", "dim")))
    return Text("\n").join(lines)


@stage(version=2)
def evaluate(
    model: Artifact, vocabulary: Artifact, sets: EvaluationSets, config: EvaluateConfig, out: Path
) -> Summary:
    """Writes `evaluation.json`: nearest neighbours, and a score for each evaluation set.

    Words that are asked for and unknown are counted, not fatal. Raises ValueError (file and line) for a
    malformed set.
    """
    vectors = WordVectors.load(model.folder)
    _, counts = read_vocabulary(vocabulary)
    scorer = Scorer(vectors, config.restrict)
    similarity = [
        scorer.similarity(entry.name, read_similarity(entry.path)) for entry in sets.of_kind("similarity")
    ]
    analogies = [
        scorer.analogies(entry.name, read_analogies(entry.path)) for entry in sets.of_kind("analogies")
    ]
    asked = config.neighbours_of if config.neighbours_of is not None else telling_words(vectors.words)
    known = [vectors.spelling(word) for word in asked if word in vectors]
    unknown = [word for word in asked if word not in vectors]
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
        facts["scores"] = "none: no evaluation set at hand; install gensim, or name files"
    return Summary(
        rows_in=len(vectors),
        unit_in="words",
        rows=len(known) + len(sets.sets),
        unit="figures",
        dropped={"asked for and unknown": len(unknown)},
        facts=facts,
    )


def telling_words(words: list[str]) -> list[str]:
    """Eight words to look at, from the vocabulary alone, so that models of one text show the same ones.

    The most frequent words of any language are its function words, and frequent words are short (Zipf): the
    choice falls on the longer half of what stands behind them, spread over their ranks.
    """
    frequent = words[TELLING_RANKS] or words
    median = float(np.median([len(word) for word in frequent]))
    longer = [word for word in frequent if len(word) > median] or frequent
    shown = min(TELLING_WORDS, len(longer))
    return [longer[i * len(longer) // shown] for i in range(shown)]


class Scorer:
    """Scores the vectors of the `restrict` most frequent words; of spellings unlike in case, the first."""

    def __init__(self, vectors: WordVectors, restrict: int) -> None:
        self._unit = torch.nn.functional.normalize(vectors.vectors[:restrict])  # (V, dim)
        self._ids: dict[str, int] = {}  # folded word -> its first id
        self._variants: dict[int, list[int]] = {}  # first id -> the other spellings' ids
        for word_id, word in enumerate(vectors.words[:restrict]):
            first = self._ids.setdefault(folded(word), word_id)
            if first != word_id:
                self._variants.setdefault(first, []).append(word_id)

    def similarity(self, name: str, judged: list[tuple[str, str, float]]) -> SimilarityScore:
        """Spearman's correlation of the scores that people gave, and the cosines."""
        known = [
            (self._ids[folded(a)], self._ids[folded(b)], score)
            for a, b, score in judged
            if folded(a) in self._ids and folded(b) in self._ids
        ]
        first, second = [a for a, _, _ in known], [b for _, b, _ in known]
        cosines = (self._unit[first] * self._unit[second]).sum(1).numpy()  # (pairs,)
        correlation = spearman(np.array([score for _, _, score in known]), cosines)
        return SimilarityScore(name=name, pairs=len(judged), scored=len(known), spearman=correlation)

    def analogies(self, name: str, sections: dict[str, list[list[str]]]) -> AnalogyScore:
        """How often the word nearest to b - a + c, none of the three, is d (3CosAdd)."""
        scores = []
        with console.bar("analogies", total=sum(map(len, sections.values()))) as bar:
            for section, questions in sections.items():
                ids = [
                    [self._ids[folded(word)] for word in question]
                    for question in questions
                    if all(folded(word) in self._ids for word in question)
                ]
                correct = sum(self._right_answers(torch.tensor(block)) for block in self._blocks(ids))
                scores.append(
                    AnalogyScore(name=section, questions=len(questions), scored=len(ids), correct=correct)
                )
                bar.update(sum(score.questions for score in scores))
        return AnalogyScore(
            name=name,
            questions=sum(score.questions for score in scores),
            scored=sum(score.scored for score in scores),
            correct=sum(score.correct for score in scores),
            sections=scores,
        )

    def _blocks(self, ids: list[list[int]]) -> Iterator[list[list[int]]]:
        size = max(1, SCORES_AT_ONCE // len(self._unit))
        return (ids[start : start + size] for start in range(0, len(ids), size))

    def _right_answers(self, questions: torch.Tensor) -> int:
        """questions: (Q, 4) ids."""
        a, b, c, d = questions.T
        scores = (self._unit[b] - self._unit[a] + self._unit[c]) @ self._unit.T  # (Q, V)
        scores.scatter_(1, questions[:, :3], -torch.inf)
        for row, ids in enumerate(questions[:, :3].tolist()):
            for word_id in ids:
                if word_id in self._variants:
                    scores[row, self._variants[word_id]] = -torch.inf
        best = scores.argmax(1)  # (Q,)
        return sum(
            answer == right or answer in self._variants.get(right, [])
            for answer, right in zip(best.tolist(), d.tolist(), strict=True)
        )


def folded(word: str) -> str:
    return word.upper()  # as gensim does: 'ß' is 'SS'


def spearman(first: NDArray[np.floating], second: NDArray[np.floating]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where it is not defined."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(mean_ranks(first), mean_ranks(second))[0, 1])


def mean_ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Each value's rank from 1; equal values share the mean of their ranks."""
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(times) - (times - 1) / 2)[place]
