"""The classifier gives the same scores as transformers, for any batch, and word attributions."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel, pipeline

from lexloom.models.normalization import Normalization
from lexloom.models.sentiment.classifier import MAX_PHRASES, Sentiment, classify, save_classifier
from lexloom.models.sentiment.frozen_encoder import TrainedPart
from lexloom.models.sentiment.hf_loading import load_classifier
from tests.models.tiny import KINDS, LONGEST, WORDS, config, write_backbone

LABELS = ["negative", "neutral", "positive"]
MAX_LENGTH = 12


def write_model(folder: Path, kind: str = "bert", seed: int = 0, **changes: Any) -> Path:
    """Write a classifier whose last block and head have random weights, as after training."""
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
def test_transformers_gives_the_same_scores(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, kind)
    theirs = pipeline("text-classification", str(folder))(texts_of_all_lengths(), truncation=True)
    ours = classify(folder, texts_of_all_lengths())
    assert [label for label, _ in ours] == [found["label"] for found in theirs]
    assert [score for _, score in ours] == pytest.approx([found["score"] for found in theirs], abs=1e-5)
    assert {label for label, _ in ours} <= set(LABELS)


def test_trained_weights_are_loaded(tmp_path: Path) -> None:
    """Different weights give different scores, so no score comes from the backbone or from random weights."""
    (first, again, other) = (
        Sentiment.load(write_model(tmp_path / name, seed=seed)).probabilities(["good film"])
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert (first == again).all()
    assert not np.allclose(first, other, atol=0.01)


def test_score_does_not_depend_on_the_batch(model: Path) -> None:
    texts = texts_of_all_lengths()
    classifier = Sentiment.load(model)
    alone = np.concatenate([classifier.probabilities([text]) for text in texts])
    np.testing.assert_allclose(classifier.probabilities(texts), alone, atol=1e-6)
    np.testing.assert_allclose(alone.sum(1), 1, atol=1e-6)


def test_texts_are_truncated_at_the_end(model: Path) -> None:
    words = WORDS[: MAX_LENGTH - 2]  # beside the two marks
    (read,), (longer,), (shorter,) = (
        classify(model, [" ".join(text)]) for text in (words, [*words, "bad"], words[:-1])
    )
    assert longer == pytest.approx(read)
    assert shorter != read


def test_truncation_side_of_the_tokenizer_is_used(model: Path, tmp_path: Path) -> None:
    folder = changed(model, "tokenizer_config.json", tmp_path / "left", truncation_side="left")
    long = " ".join(WORDS)
    ours = classify(folder, [long])
    theirs = pipeline("text-classification", str(folder))(long, truncation=True)
    assert ours[0][1] == pytest.approx(theirs[0]["score"], abs=1e-5)
    assert ours != classify(model, [long])
    words = [word for word, _ in Sentiment.load(folder).attribute(long)]
    assert words == WORDS[2 - MAX_LENGTH :]


def test_text_of_a_hundred_thousand_words_is_classified(model: Path) -> None:
    ((label, score),) = classify(model, ["word1 " * 100_000])
    assert label in LABELS
    assert 1 / 3 < score < 1


def test_no_texts_give_no_labels(model: Path) -> None:
    assert classify(model, []) == []


def test_attribution_is_the_log_odds_lost_without_the_word(model: Path) -> None:
    classifier = Sentiment.load(model)

    def odds(text: str, label: int) -> float:
        share = classifier.probabilities([text])[0, label]
        return float(np.log(share / (1 - share)))

    label = LABELS.index(classifier.classify(["the film was good"])[0][0])
    whole = odds("the film was good", label)
    without = ["film was good", "the was good", "the film good", "the film was"]
    words, pulls = zip(*classifier.attribute("the  film was good\n"), strict=True)
    assert words == ("the", "film", "was", "good")
    assert list(pulls) == pytest.approx([whole - odds(text, label) for text in without], abs=1e-4)


def test_truncated_words_have_no_attribution(model: Path) -> None:
    read = MAX_LENGTH - 2
    assert [word for word, _ in Sentiment.load(model).attribute(" ".join(WORDS))] == WORDS[:read]


def test_long_text_is_attributed_by_phrases(tmp_path: Path) -> None:
    backbone = write_backbone(tmp_path / "backbone", max_position_embeddings=160)
    save_classifier(tmp_path / "model", backbone, LABELS, 152, {})
    words = [WORDS[number % len(WORDS)] for number in range(150)]
    phrases = [phrase for phrase, _ in Sentiment.load(tmp_path / "model").attribute(" ".join(words))]
    assert len(phrases) == 50 <= MAX_PHRASES
    assert " ".join(phrases) == " ".join(words)
    assert phrases[0] == " ".join(words[:3])


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_empty_text_is_rejected(model: Path, empty: str) -> None:
    with pytest.raises(ValueError, match="text 2 of 3 is empty: remove it"):
        classify(model, ["good", empty, "bad"])
    with pytest.raises(ValueError, match="the text is empty"):
        Sentiment.load(model).attribute(empty)


def test_text_without_tokens_has_no_attributions(tmp_path: Path) -> None:
    """For example a lone accent, which the tokenizer strips."""
    folder = write_model(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "BertNormalizer", "lowercase": True, "clean_text": True}
    tokenizer["normalizer"] |= {"handle_chinese_chars": True, "strip_accents": True}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    classifier = Sentiment.load(folder)
    for text in ("\u200b", "\x01", "\ufeff\u200d", "\u0301"):
        assert len(classifier.classify([text])) == 1
        with pytest.raises(ValueError, match="reads no token of this text: there are no words"):
            classifier.attribute(text)


def test_lone_surrogate_is_rejected(model: Path) -> None:
    says = r"has a lone surrogate \(U\+D83D\) at character 6"
    with pytest.raises(ValueError, match=f"text 2 of 2 {says}"):
        classify(model, ["good", "good \ud83d"])
    with pytest.raises(ValueError, match=f"the text {says}"):
        Sentiment.load(model).attribute("good \ud83d")


def test_non_string_is_rejected(model: Path) -> None:
    with pytest.raises(ValueError, match="text 1 of 1 is float, not str"):
        classify(model, [float("nan")])  # type: ignore[list-item]


def test_other_kinds_of_models_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "config.json").write_text('{"model": "word2vec", "dim": 100}')
    with pytest.raises(ValueError, match="contains a model of the kind word2vec, not a text classifier"):
        Sentiment.load(tmp_path / "vectors")
    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1)).save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="GPT2LMHeadModel, not a text classifier"):
        Sentiment.load(tmp_path / "lm")


def changed(folder: Path, name: str, target: Path, **fields: object) -> Path:
    """Copy a model folder with changed fields in one of its JSON files; None removes a field."""
    shutil.copytree(folder, target)
    stated = json.loads((target / name).read_text()) | fields
    stated = {field: value for field, value in stated.items() if value is not None}
    (target / name).write_text(json.dumps(stated))
    return target


def test_multi_label_and_regression_models_are_rejected(model: Path, tmp_path: Path) -> None:
    several = changed(model, "config.json", tmp_path / "n", problem_type="multi_label_classification")
    with pytest.raises(
        ValueError,
        match="is trained for multi_label_classification: only single_label_classification is supported",
    ):
        Sentiment.load(several)
    shutil.copytree(model, tmp_path / "one")
    AutoModelForSequenceClassification.from_config(config("bert", num_labels=1)).save_pretrained(
        tmp_path / "one"
    )
    with pytest.raises(ValueError, match="has a single label, so it is a regression model"):
        Sentiment.load(tmp_path / "one")


def test_missing_gpu_is_reported(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match="the device is cuda, but torch finds no GPU on this machine: use cpu"
    ):
        Sentiment.load(model, "cuda")


def test_folder_without_a_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model in .* \(no config.json\)"):
        classify(tmp_path / "nowhere", ["good"])


def test_damaged_folder_is_reported(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"model can't be read as an encoder by transformers"):
        Sentiment.load(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json can't be read"):
        Sentiment.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json"):
        Sentiment.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        Sentiment.load(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config.json does not describe a model"):
        Sentiment.load(folder)


def test_weights_have_the_permissions_of_the_other_files(model: Path) -> None:
    modes = {path.stat().st_mode for path in (model / "config.json", model / "model.safetensors")}
    assert len(modes) == 1


def test_length_limit_defaults_to_the_models(model: Path, tmp_path: Path) -> None:
    """A tokenizer without a length limit uses the model's."""
    silent = changed(model, "tokenizer_config.json", tmp_path / "silent", model_max_length=None)
    assert Sentiment.load(model).max_length == MAX_LENGTH
    assert Sentiment.load(silent).max_length == LONGEST


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_roberta_positions_before_padding_are_not_counted(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, kind, pad_token_id=1)
    silent = changed(folder, "tokenizer_config.json", tmp_path / "silent", model_max_length=None)
    classifier = Sentiment.load(silent)
    assert classifier.max_length == LONGEST - 2
    assert classifier.classify([" ".join(WORDS)])[0][0] in LABELS


def test_texts_are_normalized_like_the_training_reviews(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lower"
    shutil.copytree(model, folder)
    (folder / "lexloom.json").write_text(json.dumps({"normalization": Normalization().model_dump()}))
    typed, read = "<p>Good &amp; BAD,</p> the film!", "good bad the film"
    ours, plain = Sentiment.load(folder), Sentiment.load(model)
    np.testing.assert_array_equal(ours.probabilities([typed]), plain.probabilities([read]))
    assert ours.attribute(typed) == plain.attribute(read)
    assert ours.normalized(typed) == read
    with pytest.raises(ValueError, match="this model's normalization removes all of text 2 of 2"):
        ours.classify([typed, "<br> 7/10!"])
    assert plain.normalization is None
