"""Train word vectors: skip-gram with negative sampling."""

import sys

if __name__ == "__main__":  # before Prefect is imported, since it reads its logging settings just then
    from lexloom.deployments.cli.main import main

    sys.exit(main(["word2vec", *sys.argv[1:]]))

from typing import Self

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field, model_validator

from lexloom.flows.config import FlowConfig
from lexloom.flows.run import Outcome, story
from lexloom.tasks.corpus import CorpusConfig, corpus, locate_source
from lexloom.tasks.evaluate.word2vec import EvaluateConfig, evaluate, highlights, locate_sets
from lexloom.tasks.negative_sampling import NoiseConfig, noise
from lexloom.tasks.pairs import PairsConfig, pairs
from lexloom.tasks.report.word2vec import ReportConfig, markdown, report
from lexloom.tasks.tokens import TokensConfig, tokens
from lexloom.tasks.train.word2vec import TrainWord2VecConfig, train_word2vec
from lexloom.tasks.vocabulary import VocabularyConfig, vocabulary

__all__ = ["Word2VecConfig", "highlights", "word2vec"]


class Word2VecConfig(FlowConfig):
    """Everything that can be said about a word2vec run, in the order in which the stages use it."""

    corpus: CorpusConfig = Field(CorpusConfig(), description="the text", json_schema_extra={"position": 0})
    vocabulary: VocabularyConfig = Field(
        VocabularyConfig(), description="the words that are kept", json_schema_extra={"position": 1}
    )
    tokens: TokensConfig = Field(
        TokensConfig(), description="words as ids", json_schema_extra={"position": 2}
    )
    pairs: PairsConfig = Field(
        PairsConfig(), description="(target, context) pairs", json_schema_extra={"position": 3}
    )
    noise: NoiseConfig = Field(
        NoiseConfig(), description="the distribution of negatives", json_schema_extra={"position": 4}
    )
    train: TrainWord2VecConfig = Field(
        TrainWord2VecConfig(), description="model and training", json_schema_extra={"position": 5}
    )
    evaluate: EvaluateConfig = Field(
        EvaluateConfig(), description="neighbours and scores", json_schema_extra={"position": 6}
    )
    report: ReportConfig = Field(
        ReportConfig(), description="the report's page", json_schema_extra={"position": 7}
    )

    @model_validator(mode="after")
    def patience_needs_validation(self) -> Self:
        if self.train.patience is not None and not self.pairs.validation_share:
            raise ValueError("patience watches the error on held-out pairs: say --validation-share 0.05")
        return self


DEFAULT_CONFIG = Word2VecConfig()


@flow(name="word2vec")
def word2vec(config: Word2VecConfig = DEFAULT_CONFIG) -> Outcome:
    """Trains word vectors on a corpus, looks at them, and writes a report."""
    with story("word2vec", config.train.cluster) as told:
        text = corpus(locate_source(config.corpus), config=config.corpus)
        words = vocabulary(text, config=config.vocabulary)
        ids = tokens(text, words, config=config.tokens)
        skipgrams = pairs(ids, words, config=config.pairs) if config.pairs.mode == "stored" else ids
        negatives = noise(words, config=config.noise)
        model = train_word2vec(skipgrams, negatives, words, config=config.train.reading(config.pairs))
        scores = evaluate(model, words, locate_sets(config.evaluate), config=config.evaluate)
        page = report(model, scores, words, config=config.report)
        create_markdown_artifact(markdown(model, scores, words, config.report), key="report")
        return told.outcome(model, scores, page)
