"""Evaluation of word vectors: scores against gensim, evaluation sets, and example neighbours."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from gensim.models import KeyedVectors
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import lexloom.tasks.evaluate.evaluation_sets
import lexloom.tasks.evaluate.word_scores
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.evaluate.evaluation_sets import EvaluationSets, read_analogies, read_similarity
from lexloom.tasks.evaluate.word2vec import (
    EvaluateConfig,
    clearest_neighbours,
    evaluate_word2vec,
    highlights,
    locate_sets,
    read_evaluation,
)
from lexloom.tasks.evaluate.word_scores import Scorer, spearman
from lexloom.tasks.store.artifacts import Artifact, Summary

NO_SETS = {"similarity": [], "analogies": []}


@pytest.fixture
def inputs(tmp_path: Path) -> Callable[..., tuple[Artifact, ...]]:
    """A model, a vocabulary and a tokens artifact with these words and vectors."""

    def make(words: list[str], vectors: np.ndarray) -> tuple[Artifact, ...]:
        summary = Summary(rows_in=0, unit_in="", rows=0, unit="")
        folders = [tmp_path / name for name in ("model", "vocabulary", "tokens")]
        for folder in folders:
            folder.mkdir()
        WordVectors(words, vectors.astype(np.float32)).save(folders[0])
        table = pa.table({"word": words, "count": list(range(len(words), 0, -1))})
        pq.write_table(table, folders[1] / "vocabulary.parquet")
        tokens = pa.array([list(range(len(words)))], pa.list_(pa.int32()))
        pq.write_table(pa.table({"tokens": tokens}), folders[2] / "shard-00000.parquet")
        return tuple(
            Artifact(stage=folder.name, key=folder.name, folder=folder, summary=summary) for folder in folders
        )

    return make


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# equal to gensim


def random_model(words: list[str], seed: int) -> tuple[WordVectors, KeyedVectors]:
    vectors = np.random.default_rng(seed).normal(size=(len(words), 6)).astype(np.float32)
    peer = KeyedVectors(6)
    peer.add_vectors(words, vectors)
    return WordVectors(words, vectors), peer


def test_similarity_is_gensims(tmp_path):
    generator = np.random.default_rng(1)
    words = [f"Word{i}" for i in range(40)]
    ours, peer = random_model(words, seed=2)
    asked = [*words, "unknown", "absent", *map(str.upper, words[:5])]
    drawn = [generator.choice(asked, 2, replace=False) for _ in range(300)]
    lines = [f"{a}\t{b}\t{generator.integers(0, 8)}" for a, b in drawn]
    path = write(tmp_path / "pairs.tsv", "# a comment\n" + "\n".join(lines) + "\n")
    for restrict in (300, 25):
        score = Scorer(ours, restrict, frequent=restrict).similarity("pairs", read_similarity(path))
        _, (expected, _), unknown_percent = peer.evaluate_word_pairs(path, restrict_vocab=restrict)
        assert score.spearman == pytest.approx(expected, abs=1e-6)
        assert 100 * (1 - score.coverage) == pytest.approx(unknown_percent)


@pytest.mark.parametrize("block", [1, 1 << 26], ids=["one question at a time", "all at once"])
def test_analogies_are_gensims(tmp_path, monkeypatch, block):
    monkeypatch.setattr(lexloom.tasks.evaluate.word_scores, "SCORES_AT_ONCE", block)
    generator = np.random.default_rng(3)
    lower = [f"w{i}" for i in range(12)]
    words = [*lower, "W3", "w12", "W0", "W5"]  # other spellings of words above
    ours, peer = random_model(words, seed=4)
    asked = [*words, "unknown"]
    sections = [
        [" ".join(line) for line in generator.choice(asked, (250, 4), replace=True)] for _ in range(2)
    ]
    path = write(
        tmp_path / "questions.txt",
        "".join(f": part {i}\n" + "\n".join(lines) + "\n" for i, lines in enumerate(sections)),
    )
    for restrict in (300, 11):
        score = Scorer(ours, restrict, frequent=restrict).analogies("questions", read_analogies(path))
        expected, parts = peer.evaluate_word_analogies(path, restrict_vocab=restrict)
        assert score.correct > 10
        assert score.accuracy == pytest.approx(expected)
        for ours_, theirs in zip(score.sections, parts, strict=False):
            assert ours_.name == theirs["section"]
            assert ours_.correct == len(theirs["correct"])
            assert ours_.scored == len(theirs["correct"]) + len(theirs["incorrect"])


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-1, 1)), min_size=2, max_size=50))
def test_ties_have_their_mean_rank(judged):
    first, second = np.array(judged).T
    ours = spearman(first, second)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        assert ours is None
    else:
        assert ours == pytest.approx(scipy.stats.spearmanr(first, second).statistic, abs=1e-9)


# the files


def test_a_malformed_judgement_names_its_line(tmp_path):
    path = write(tmp_path / "bad.tsv", "# header\nold new 1.5\nsmart clever\n")
    with pytest.raises(ValueError, match=r"bad\.tsv:3: expected 'word word score', got 'smart clever'"):
        read_similarity(path)
    with pytest.raises(ValueError, match=r"worse\.tsv:1: expected 'word word score'"):
        read_similarity(write(tmp_path / "worse.tsv", "old new high\n"))


def test_a_malformed_question_names_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"three\.txt:3: expected four words, got 3"):
        read_analogies(write(tmp_path / "three.txt", ": s\na b c d\na b c\n"))
    with pytest.raises(ValueError, match=r"bare\.txt:1: a question before the first section"):
        read_analogies(write(tmp_path / "bare.txt", "a b c d\n"))


def test_sections_are_read_as_written(tmp_path):
    path = write(tmp_path / "q.txt", ": my capitals\nAthens Greece Oslo Norway\n\n: empty\n")
    assert read_analogies(path) == {"my capitals": [["Athens", "Greece", "Oslo", "Norway"]], "empty": []}


def test_sets_are_identified_by_name_and_content(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here = write(tmp_path / "a" / "mine.tsv", "old new 1\n")
    there = write(tmp_path / "b" / "mine.tsv", "old new 1\n")
    keys = [locate_sets(EvaluateConfig(similarity=[path], analogies=[])).key for path in (here, there)]
    assert keys[0] == keys[1]
    write(there, "old new 2\n")
    assert locate_sets(EvaluateConfig(similarity=[there], analogies=[])).key != keys[0]
    configs = [EvaluateConfig(similarity=[path]) for path in (here, there)]
    assert evaluate_word2vec.key((), configs[0]) == evaluate_word2vec.key((), configs[1])


def test_gensims_sets_are_found_and_well_formed():
    found = locate_sets(EvaluateConfig())
    assert [entry.name for entry in found.sets] == ["wordsim353", "simlex999", "questions-words"]
    assert [len(read_similarity(entry.path)) for entry in found.of_kind("similarity")] == [353, 999]
    [questions] = found.of_kind("analogies")
    sections = read_analogies(questions.path)
    assert (len(sections), sum(map(len, sections.values()))) == (14, 19544)
    assert "path" not in json.dumps(found.model_dump(mode="json"))


def test_without_gensim_there_are_none(monkeypatch):
    monkeypatch.setattr(lexloom.tasks.evaluate.evaluation_sets.importlib.util, "find_spec", lambda name: None)
    assert locate_sets(EvaluateConfig()).sets == []


def test_a_missing_or_doubly_named_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the analogies file .*none\.txt does not exist"):
        locate_sets(EvaluateConfig(analogies=[tmp_path / "none.txt"]))
    path = write(tmp_path / "one.tsv", "a b 1\n")
    with pytest.raises(ValueError, match="two evaluation files are called one"):
        locate_sets(EvaluateConfig(similarity=[path, path], analogies=[]))


# the stage


SQUARE = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [-1, -1]])
WORDS = ["north", "Northern", "east", "eastern", "odd"]


def test_the_evaluation_file_has_neighbours_and_scores(build, inputs, tmp_path):
    similarity = write(tmp_path / "sim.tsv", "north northern 9\nnorth east 3\nnorth odd 1\nup down 2\n")
    analogies = write(tmp_path / "ana.txt", ": ways\nnorth northern east eastern\nup a b c\n")
    config = EvaluateConfig(
        neighbours_of=["east", "absent"], neighbours=2, similarity=[similarity], analogies=[analogies]
    )
    made = build(evaluate_word2vec, *inputs(WORDS, SQUARE), locate_sets(config), config=config)
    found = read_evaluation(made)
    [east] = found.neighbours
    assert (east.word, east.count) == ("east", 3)
    assert [(near.word, near.count) for near in east.neighbours] == [("eastern", 2), ("Northern", 4)]
    assert east.neighbours[0].similarity == pytest.approx(0.9 / np.hypot(0.1, 0.9), abs=1e-4)
    [score] = found.similarity
    assert (score.name, score.pairs, score.scored, score.spearman) == ("sim", 4, 3, pytest.approx(1.0))
    [score] = found.analogies
    assert (score.questions, score.scored, score.correct, score.accuracy) == (2, 1, 1, 1.0)
    assert score.coverage == 0.5
    assert made.facts == {"sim": 1.0, "ana": 1.0}
    assert made.summary.dropped == {"requested words not in the vocabulary": 1}
    shown = highlights(made, 80).plain.splitlines()
    *_, east_shown, absent_shown = shown[: shown.index("", 1)]
    assert east_shown.startswith("east    eastern 0.99  Northern ")
    assert absent_shown == "absent  is not in the vocabulary"
    assert shown[shown.index("", 1) + 1 :] == [
        "analogies: 1 of 1 question answered correctly (100.0%), with the largest margin:",
        "north is to Northern as east is to eastern",
    ]


def test_without_evaluation_sets_the_summary_says_so(build, inputs):
    config = EvaluateConfig(**NO_SETS)
    made = build(evaluate_word2vec, *inputs(WORDS, SQUARE), EvaluationSets(sets=[]), config=config)
    assert "install gensim" in made.facts["scores"]
    assert read_evaluation(made).similarity == []


def test_a_set_of_unknown_words_has_no_score(build, inputs, tmp_path):
    config = EvaluateConfig(
        similarity=[write(tmp_path / "sim.tsv", "up down 1\n")],
        analogies=[write(tmp_path / "ana.txt", ": s\na b c d\n")],
    )
    made = build(evaluate_word2vec, *inputs(WORDS, SQUARE), locate_sets(config), config=config)
    assert made.facts == {"sim": None, "ana": None}


def test_the_example_of_a_section_is_the_right_answer_with_the_largest_lead() -> None:
    words = ["a", "b", "c", "d", "a2", "b2", "c2", "d2", "rival", "rare"]
    vectors = np.zeros((len(words), 8), np.float32)
    vectors[:4, :3] = [[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1]]
    vectors[4:8, 3:6] = [[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1]]
    vectors[8] = vectors[3] + [0, 0, 0, 0, 0, 0, 0.1, 0]  # nearly d
    vectors[9] = vectors[7]
    vectors[9, 7] = 1
    sections = {"s": [["a", "b", "c", "d"], ["a2", "b2", "c2", "d2"], ["a", "b", "c", "rare"]]}
    score = Scorer(WordVectors(words, vectors), 300, frequent=9).analogies("q", sections).sections[0]
    assert (score.correct, score.example and score.example.words) == (2, ["a2", "b2", "c2", "d2"])
    assert score.example is not None
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    target = unit[5] - unit[4] + unit[6]
    first, second = sorted((unit[[3, 7, 8, 9]] @ target / np.linalg.norm(target)).tolist())[::-1][:2]
    assert score.example.lead == pytest.approx(first - second, abs=1e-4)
    only = Scorer(WordVectors(words, vectors), 300, frequent=4).analogies("q", sections).sections[0]
    assert (only.correct, only.example and only.example.words) == (2, ["a", "b", "c", "d"])


def test_the_chosen_words_have_the_clearest_neighbours_and_differ() -> None:
    generator = np.random.default_rng(1)
    noise = generator.normal(size=(120, 64))
    topics = np.repeat(generator.normal(size=(12, 64)), 10, axis=0)
    closeness = np.repeat(np.arange(12.0), 10)[:, None]  # the last topic's words are the most similar
    words = [f"w{i}" for i in range(120)]
    vectors = WordVectors(words, (noise + closeness * topics).astype(np.float32))
    found = clearest_neighbours(vectors, words, frequent=120, k=3)
    assert {int(word[1:]) // 10 for word in found} == {11, 10, 9, 8, 7, 6, 5, 4}
    assert all(len(near) == 3 for near in found.values())
    among = clearest_neighbours(vectors, words[:50], frequent=60, k=8)
    assert {int(word[1:]) // 10 for word in among} >= {4, 3, 2}
    assert all(int(near[1:]) < 60 for row in among.values() for near, _ in row)


def test_options_out_of_bounds_are_rejected():
    for options in ({"neighbours": 0}, {"restrict": 0}, {"unheard": 1}):
        with pytest.raises(ValidationError):
            EvaluateConfig(**options)


def test_a_set_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes(b"cat dog 3\ncaf\xe9 tea 2\n")
    with pytest.raises(ValueError, match=r"pairs.txt:2: not UTF-8"):
        read_similarity(path)
