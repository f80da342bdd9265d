"""Train a window language model: a dense network on sliding windows over token embeddings."""

import sys

if __name__ == "__main__":  # before Prefect is imported, since it reads its logging settings just then
    from lexloom.deployments.cli.main import main

    sys.exit(main(["window-lm", *sys.argv[1:]]))

from typing import Annotated, Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from lexloom.flows.config import FlowConfig
from lexloom.flows.run import Outcome, story
from lexloom.tasks.bpe_tokens import SubwordsConfig, locate_encoding, subwords
from lexloom.tasks.corpus import WrittenCorpusConfig, corpus, locate_source
from lexloom.tasks.embeddings import (
    FROM_FLOW,
    EmbeddingsConfig,
    EmbeddingSource,
    embeddings,
    locate_embeddings,
)
from lexloom.tasks.evaluate.language_model import EvaluateLMConfig, evaluate_lm, highlights
from lexloom.tasks.generate import SamplesConfig, samples
from lexloom.tasks.negative_sampling import NoiseConfig, noise
from lexloom.tasks.pairs import PairsConfig, pairs
from lexloom.tasks.report.language_model import ReportLMConfig, markdown, report_lm
from lexloom.tasks.store.artifacts import Artifact, RunOnly
from lexloom.tasks.train.run import LANES
from lexloom.tasks.train.window_lm import TrainWindowLMConfig, train_window_lm
from lexloom.tasks.train.word2vec import TrainWord2VecConfig, train_word2vec
from lexloom.tasks.windows import WindowsConfig, windows

__all__ = ["WindowLMFlowConfig", "highlights", "window_lm"]


class TokenVectorsConfig(TrainWord2VecConfig):
    """Word vectors of the tokens themselves: a matter of seconds, so trained without Ray."""

    workers: int = Field(
        1,
        ge=1,
        le=LANES,
        description="data-parallel workers, one replica of the model each",
        json_schema_extra={"position": 1},
    )
    runner: Annotated[Literal["ray", "local"], RunOnly()] = Field(
        "local",
        description="'ray' trains on Ray Train workers; 'local' one worker in this process, without Ray",
        json_schema_extra={"position": 11},
    )


class EveryTokenConfig(WindowsConfig):
    """Windows in which every token is a label, so that the model can begin a text, too."""

    partial: bool = Field(
        True,
        description="begin with windows that are filled up with end-of-text tokens on the left",
        json_schema_extra={"position": 3},
    )


class WindowLMFlowConfig(FlowConfig):
    """Everything that can be said about a window-lm run, in the order in which the stages use it."""

    corpus: WrittenCorpusConfig = Field(
        WrittenCorpusConfig(), description="the text", json_schema_extra={"position": 0}
    )
    subwords: SubwordsConfig = Field(
        SubwordsConfig(),
        description="text as tokens, and what is held out",
        json_schema_extra={"position": 1},
    )
    embeddings: EmbeddingsConfig = Field(
        EmbeddingsConfig(), description="the tokens' embeddings", json_schema_extra={"position": 2}
    )
    pairs: PairsConfig = Field(
        PairsConfig(), description="pairs of tokens, for flow:word2vec", json_schema_extra={"position": 3}
    )
    vectors: TokenVectorsConfig = Field(
        TokenVectorsConfig(),
        description="token vectors, for flow:word2vec",
        json_schema_extra={"position": 4},
    )
    windows: EveryTokenConfig = Field(
        EveryTokenConfig(),
        description="what is read, and what is predicted",
        json_schema_extra={"position": 5},
    )
    train: TrainWindowLMConfig = Field(
        TrainWindowLMConfig(), description="model and training", json_schema_extra={"position": 6}
    )
    evaluate: EvaluateLMConfig = Field(
        EvaluateLMConfig(), description="figures and baselines", json_schema_extra={"position": 7}
    )
    samples: SamplesConfig = Field(
        SamplesConfig(), description="what the model is asked to write", json_schema_extra={"position": 8}
    )
    report: ReportLMConfig = Field(
        ReportLMConfig(title="Window language model"),
        description="the report's page",
        json_schema_extra={"position": 9},
    )


DEFAULT_CONFIG = WindowLMFlowConfig()


@flow(name="window-lm")
def window_lm(config: WindowLMFlowConfig = DEFAULT_CONFIG) -> Outcome:
    """Trains a next-token network on sliding windows over token embeddings, and writes a report."""
    with story("window-lm", config.train.cluster) as told:
        text = corpus(locate_source(config.corpus), config=config.corpus)
        ids = subwords(text, locate_encoding(config.subwords), config=config.subwords)
        table = embeddings(ids, table_of(ids, config), config=config.embeddings)
        examples = windows(ids, config=config.windows)
        model = train_window_lm(examples, table, ids, config=config.train)
        scores = evaluate_lm(model, examples, ids, config=config.evaluate)
        texts = samples(model, config=config.samples)
        page = report_lm(model, scores, texts, config=config.report)
        create_markdown_artifact(markdown(model, scores, texts, config.report), key="report")
        return told.outcome(model, scores, page)


def table_of(ids: Artifact, config: WindowLMFlowConfig) -> Artifact | EmbeddingSource:
    """The embeddings' source: word vectors of the tokens themselves, or what the config names."""
    if config.embeddings.source != FROM_FLOW:
        return locate_embeddings(config.embeddings)
    skipgrams = pairs(ids, ids, config=config.pairs) if config.pairs.mode == "stored" else ids
    negatives = noise(ids, config=NoiseConfig())
    return train_word2vec(skipgrams, negatives, ids, config=config.vectors.reading(config.pairs))
