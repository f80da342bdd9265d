"""Train word vectors: skip-gram with negative sampling."""

import sys

if __name__ == "__main__":  # before Prefect is imported, which reads its logging settings on import
    from lexloom.flows.command import main

    sys.exit(main("word2vec"))

from typing import Self

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field, model_validator

from lexloom.flows.config import FlowConfig
from lexloom.flows.run import Outcome, record_run
from lexloom.tasks.corpus import CorpusConfig, corpus, locate_source
from lexloom.tasks.evaluate.word2vec import EvaluateConfig, evaluate_word2vec, highlights, locate_sets
from lexloom.tasks.negative_sampling import NoiseConfig, negative_sampling
from lexloom.tasks.pairs import PairsConfig, count_pairs, pairs
from lexloom.tasks.report.word2vec import ReportConfig, markdown, report_word2vec
from lexloom.tasks.tokens import TokensConfig, tokens
from lexloom.tasks.train.word2vec import TrainWord2VecConfig, train_word2vec
from lexloom.tasks.vocabulary import VocabularyConfig, vocabulary

__all__ = ["Word2VecConfig", "highlights", "word2vec"]


class Word2VecConfig(FlowConfig):
    """Parameters of a word2vec run, in the order of its stages."""

    main_parameters = (
        "corpus.source",
        "corpus.text_column",
        "corpus.limit",
        "vocabulary.min_count",
        "pairs.window",
        "train.dim",
        "train.negatives",
        "train.epochs",
        "train.learning_rate",
        "train.workers",
        "train.threads",
        "train.device",
        "train.runner",
        "train.ray_address",
        "train.seed",
    )

    corpus: CorpusConfig = Field(CorpusConfig(), description="Source and normalization of the text.")
    vocabulary: VocabularyConfig = Field(VocabularyConfig(), description="Size of the vocabulary.")
    tokens: TokensConfig = Field(TokensConfig(), description="Conversion of words to token ids.")
    pairs: PairsConfig = Field(PairsConfig(), description="Sampling of (target, context) pairs.")
    noise: NoiseConfig = Field(NoiseConfig(), description="Distribution of the negative samples.")
    train: TrainWord2VecConfig = Field(TrainWord2VecConfig(), description="Model and training.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Neighbours and evaluation sets.")
    report: ReportConfig = Field(ReportConfig(), description="HTML report.")

    @model_validator(mode="after")
    def patience_needs_validation(self) -> Self:
        if self.train.patience is not None and not self.pairs.validation_share:
            raise ValueError("patience needs held-out pairs: set --validation-share, for example to 0.05")
        return self


DEFAULT_CONFIG = Word2VecConfig()


@flow(name="word2vec")
def word2vec(config: Word2VecConfig = DEFAULT_CONFIG) -> Outcome:
    """Train word vectors on a corpus, evaluate them, and write a report."""
    with record_run("word2vec", config, config.train.cluster) as recorder:
        text = corpus(locate_source(config.corpus), config=config.corpus)
        words = vocabulary(text, config=config.vocabulary)
        ids = tokens(text, words, config=config.tokens)
        skipgrams = pairs(ids, words, config=config.pairs) if config.pairs.mode == "stored" else ids
        negatives = negative_sampling(words, config=config.noise)
        training = config.train.with_epochs(count_pairs(skipgrams, words, config.pairs))
        model = train_word2vec(skipgrams, negatives, words, config=training.reading(config.pairs))
        recorder.name_model(model)
        sets = locate_sets(config.evaluate)
        scores = evaluate_word2vec(model, words, ids, sets, config=config.evaluate)
        page = report_word2vec(model, scores, words, config=config.report)
        create_markdown_artifact(markdown(model, scores, words, config.report), key="report")
        return recorder.outcome(model, scores, page)
