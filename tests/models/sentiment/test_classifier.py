"""A classifier in a folder: the same scores as transformers gives, one text or many, and why."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel, pipeline

from lexloom.models.normalization import Normalization
from lexloom.models.sentiment.classifier import PHRASES, Classifier, classify, save_classifier
from lexloom.models.sentiment.frozen_encoder import TrainedPart, load_classifier
from tests.models.tiny import KINDS, LONGEST, WORDS, config, write_backbone

LABELS = ["negative", "neutral", "positive"]
MAX_LENGTH = 12


def write_model(folder: Path, kind: str = "bert", seed: int = 0, **changes: Any) -> Path:
    """A classifier whose last block and head were moved at random, as training does."""
    backbone = write_backbone(folder / "backbone", kind, **changes)
    part = TrainedPart(load_classifier(backbone, LABELS), 1, from_activations=True)
    torch.manual_seed(seed)
    trained = {
        part.names[name]: torch.nn.init.normal_(torch.empty_like(value), std=0.5)
        for name, value in part.named_parameters()
    }
    save_classifier(folder / "model", backbone, LABELS, MAX_LENGTH, trained)
    return folder / "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("sentiment"))


def texts_of_all_lengths() -> list[str]:
    chosen = np.random.default_rng(0)
    return [" ".join(chosen.choice(WORDS, length)) for length in (3, 17, 1, 9, 10, 11, 2, 30, 5, 4)]


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_the_folder_and_gives_the_same_scores(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, kind)
    theirs = pipeline("text-classification", str(folder))(texts_of_all_lengths(), truncation=True)
    ours = classify(folder, texts_of_all_lengths())
    assert [label for label, _ in ours] == [found["label"] for found in theirs]
    assert [score for _, score in ours] == pytest.approx([found["score"] for found in theirs], abs=1e-5)
    assert {label for label, _ in ours} <= set(LABELS)


def test_what_was_trained_is_what_is_loaded(tmp_path: Path) -> None:
    """Other weights, other scores: none of them is the backbone's or left to chance."""
    (first, again, other) = (
        Classifier.load(write_model(tmp_path / name, seed=seed)).probabilities(["good film"])
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert (first == again).all()
    assert not np.allclose(first, other, atol=0.01)


def test_a_text_scores_the_same_alone_and_in_company(model: Path) -> None:
    texts = texts_of_all_lengths()
    classifier = Classifier.load(model)
    alone = np.concatenate([classifier.probabilities([text]) for text in texts])
    np.testing.assert_allclose(classifier.probabilities(texts), alone, atol=1e-6)
    np.testing.assert_allclose(alone.sum(1), 1, atol=1e-6)


def test_only_the_first_tokens_are_read(model: Path) -> None:
    words = WORDS[: MAX_LENGTH - 2]  # beside the two marks
    (read,), (longer,), (shorter,) = (
        classify(model, [" ".join(text)]) for text in (words, [*words, "bad"], words[:-1])
    )
    assert longer == pytest.approx(read)
    assert shorter != read


def test_a_tokenizer_that_cuts_off_the_start_does_so_here(model: Path, tmp_path: Path) -> None:
    folder = changed(model, "tokenizer_config.json", tmp_path / "left", truncation_side="left")
    long = " ".join(WORDS)
    ours = classify(folder, [long])
    theirs = pipeline("text-classification", str(folder))(long, truncation=True)
    assert ours[0][1] == pytest.approx(theirs[0]["score"], abs=1e-5)
    assert ours != classify(model, [long])
    words = [word for word, _ in Classifier.load(folder).attribute(long)]
    assert words == WORDS[2 - MAX_LENGTH :]


def test_a_hundred_thousand_words_are_no_trouble(model: Path) -> None:
    ((label, score),) = classify(model, ["word1 " * 100_000])
    assert label in LABELS
    assert 1 / 3 < score < 1


def test_no_texts_have_no_labels(model: Path) -> None:
    assert classify(model, []) == []


def test_a_words_pull_is_what_leaving_it_out_costs_the_label(model: Path) -> None:
    classifier = Classifier.load(model)

    def odds(text: str, label: int) -> float:
        share = classifier.probabilities([text])[0, label]
        return float(np.log(share / (1 - share)))

    label = LABELS.index(classifier.classify(["the film was good"])[0][0])
    whole = odds("the film was good", label)
    without = ["film was good", "the was good", "the film good", "the film was"]
    words, pulls = zip(*classifier.attribute("the  film was good\n"), strict=True)
    assert words == ("the", "film", "was", "good")
    assert list(pulls) == pytest.approx([whole - odds(text, label) for text in without], abs=1e-4)


def test_words_that_were_not_read_have_no_pull(model: Path) -> None:
    read = MAX_LENGTH - 2
    assert [word for word, _ in Classifier.load(model).attribute(" ".join(WORDS))] == WORDS[:read]


def test_a_long_text_is_taken_by_phrases(tmp_path: Path) -> None:
    backbone = write_backbone(tmp_path / "backbone", max_position_embeddings=160)
    save_classifier(tmp_path / "model", backbone, LABELS, 152, {})
    words = [WORDS[number % len(WORDS)] for number in range(150)]
    phrases = [phrase for phrase, _ in Classifier.load(tmp_path / "model").attribute(" ".join(words))]
    assert len(phrases) == 50 <= PHRASES
    assert " ".join(phrases) == " ".join(words)
    assert phrases[0] == " ".join(words[:3])


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_an_empty_text_is_refused(model: Path, empty: str) -> None:
    with pytest.raises(ValueError, match="text 2 of 3 is empty: leave it out"):
        classify(model, ["good", empty, "bad"])
    with pytest.raises(ValueError, match="the text is empty"):
        Classifier.load(model).attribute(empty)


def test_a_text_without_a_token_has_no_words_to_look_at(tmp_path: Path) -> None:
    """A lone accent, say: a tokenizer takes it off the letter, and here is none."""
    folder = write_model(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "BertNormalizer", "lowercase": True, "clean_text": True}
    tokenizer["normalizer"] |= {"handle_chinese_chars": True, "strip_accents": True}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    classifier = Classifier.load(folder)
    for text in ("\u200b", "\x01", "\ufeff\u200d", "\u0301"):
        assert len(classifier.classify([text])) == 1
        with pytest.raises(ValueError, match="reads nothing of this text: there is no word to look at"):
            classifier.attribute(text)


def test_half_a_character_is_refused(model: Path) -> None:
    says = r"has half a character \(U\+D83D, a lone surrogate\) at place 6"
    with pytest.raises(ValueError, match=f"text 2 of 2 {says}"):
        classify(model, ["good", "good \ud83d"])
    with pytest.raises(ValueError, match=f"the text {says}"):
        Classifier.load(model).attribute("good \ud83d")


def test_what_is_no_text_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="text 1 of 1 is float, not text"):
        classify(model, [float("nan")])  # type: ignore[list-item]


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "config.json").write_text('{"model": "word2vec", "dim": 100}')
    with pytest.raises(ValueError, match="holds a model of the kind word2vec, not a classifier of texts"):
        Classifier.load(tmp_path / "vectors")
    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1)).save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="GPT2LMHeadModel, not a classifier of texts"):
        Classifier.load(tmp_path / "lm")


def changed(folder: Path, name: str, target: Path, **fields: object) -> Path:
    """A copy of a model folder with other fields in a JSON file of it; None takes a field out."""
    shutil.copytree(folder, target)
    stated = json.loads((target / name).read_text()) | fields
    stated = {field: value for field, value in stated.items() if value is not None}
    (target / name).write_text(json.dumps(stated))
    return target


def test_a_model_whose_scores_are_no_shares_of_one_label_is_refused(model: Path, tmp_path: Path) -> None:
    several = changed(model, "config.json", tmp_path / "n", problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="is trained for multi_label_classification: scores are read of"):
        Classifier.load(several)
    shutil.copytree(model, tmp_path / "one")
    AutoModelForSequenceClassification.from_config(config("bert", num_labels=1)).save_pretrained(
        tmp_path / "one"
    )
    with pytest.raises(ValueError, match="has one label, so it gives a number and no choice"):
        Classifier.load(tmp_path / "one")


def test_a_gpu_that_is_not_there_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match="the device cuda is asked for, and torch finds no GPU here: say cpu"
    ):
        Classifier.load(model, "cuda")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model in .* \(no config.json\)"):
        classify(tmp_path / "nowhere", ["good"])


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"model can't be read as an encoder by transformers"):
        Classifier.load(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json can't be read"):
        Classifier.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json"):
        Classifier.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no JSON"):
        Classifier.load(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config.json describes no model"):
        Classifier.load(folder)


def test_weights_may_be_read_by_whoever_may_read_the_rest(model: Path) -> None:
    modes = {path.stat().st_mode for path in (model / "config.json", model / "model.safetensors")}
    assert len(modes) == 1


def test_a_classifier_from_elsewhere_reads_as_much_as_it_can(model: Path, tmp_path: Path) -> None:
    """A tokenizer that names no length leaves it to the model."""
    silent = changed(model, "tokenizer_config.json", tmp_path / "silent", model_max_length=None)
    assert Classifier.load(model).max_length == MAX_LENGTH
    assert Classifier.load(silent).max_length == LONGEST


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_positions_that_lie_before_the_padding_hold_no_token(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, kind, pad_token_id=1)
    silent = changed(folder, "tokenizer_config.json", tmp_path / "silent", model_max_length=None)
    classifier = Classifier.load(silent)
    assert classifier.max_length == LONGEST - 2
    assert classifier.classify([" ".join(WORDS)])[0][0] in LABELS


def test_a_text_is_normalised_as_the_training_reviews_were(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lower"
    shutil.copytree(model, folder)
    (folder / "lexloom.json").write_text(json.dumps({"normalization": Normalization().model_dump()}))
    typed, read = "<p>Good &amp; BAD,</p> the film!", "good bad the film"
    ours, plain = Classifier.load(folder), Classifier.load(model)
    np.testing.assert_array_equal(ours.probabilities([typed]), plain.probabilities([read]))
    assert ours.attribute(typed) == plain.attribute(read)
    assert ours.normalized(typed) == read
    with pytest.raises(ValueError, match="nothing is left of text 2 of 2 by this model's normalisation"):
        ours.classify([typed, "<br> 7/10!"])
    assert plain.normalization is None
