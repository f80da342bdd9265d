"""Train a window language model: a dense network on sliding windows over token embeddings."""

import sys

if __name__ == "__main__":  # before Prefect is imported, which reads its logging settings on import
    from lexloom.flows.command import main

    sys.exit(main("window-lm"))

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from lexloom.flows.config import FlowConfig
from lexloom.flows.run import Outcome, record_run
from lexloom.tasks.corpus import WrittenCorpusConfig, corpus, locate_source
from lexloom.tasks.embeddings import (
    FROM_FLOW,
    EmbeddingsConfig,
    EmbeddingSource,
    embeddings,
    locate_embeddings,
)
from lexloom.tasks.evaluate.language_model import EvaluateLMConfig, evaluate_lm, highlights
from lexloom.tasks.generate_samples import SamplesConfig, generate_samples
from lexloom.tasks.negative_sampling import NoiseConfig, negative_sampling
from lexloom.tasks.pairs import PairsConfig, pairs
from lexloom.tasks.plan_window_lm import plan_window_lm
from lexloom.tasks.report.language_model import ReportLMConfig, markdown, report_lm
from lexloom.tasks.store.artifacts import Artifact, RunOnly
from lexloom.tasks.subwords import SubwordsConfig, subwords
from lexloom.tasks.train.resources import Runner
from lexloom.tasks.train.run import Epochs
from lexloom.tasks.train.window_lm import TrainWindowLMConfig, train_window_lm
from lexloom.tasks.train.word2vec import TrainWord2VecConfig, train_word2vec
from lexloom.tasks.train_tokenizer import choose_encoding, find_encoding
from lexloom.tasks.windows import Partial, WindowsConfig, windows

__all__ = ["WindowLMFlowConfig", "highlights", "window_lm"]


class TokenVectorsConfig(TrainWord2VecConfig):
    """Training of the token vectors; it takes seconds, so it runs locally even if there is a Ray cluster."""

    epochs: Epochs = 5
    runner: Annotated[Runner, RunOnly()] = Field(
        "local",
        description="Runner, as in training; 'local' trains one worker in this process, without Ray.",
    )


class EveryTokenConfig(WindowsConfig):
    """Windows in which every token is a label once, so that the model also learns how texts begin."""

    partial: Partial = True


class WindowLMFlowConfig(FlowConfig):
    """Parameters of a window-lm run, in the order of its stages."""

    main_parameters = (
        "corpus.source",
        "corpus.text_column",
        "corpus.limit",
        "subwords.encoding",
        "subwords.vocab_size",
        "embeddings.source",
        "windows.size",
        "windows.stride",
        "train.minutes",
        "train.objective",
        "train.width",
        "train.depth",
        "train.epochs",
        "train.batch_size",
        "train.learning_rate",
        "train.workers",
        "train.device",
        "train.ray_address",
        "train.seed",
    )

    corpus: WrittenCorpusConfig = Field(
        WrittenCorpusConfig(), description="Source and normalization of the text."
    )
    subwords: SubwordsConfig = Field(SubwordsConfig(), description="Tokenization and the validation split.")
    embeddings: EmbeddingsConfig = Field(EmbeddingsConfig(), description="Embeddings of the tokens.")
    pairs: PairsConfig = Field(
        PairsConfig(), description="Sampling of token pairs, for embeddings from flow:word2vec."
    )
    vectors: TokenVectorsConfig = Field(
        TokenVectorsConfig(), description="Training of token vectors, for embeddings from flow:word2vec."
    )
    windows: EveryTokenConfig = Field(EveryTokenConfig(), description="Size and stride of the windows.")
    train: TrainWindowLMConfig = Field(TrainWindowLMConfig(), description="Model and training.")
    evaluate: EvaluateLMConfig = Field(EvaluateLMConfig(), description="Metrics and baselines.")
    samples: SamplesConfig = Field(SamplesConfig(), description="Sample texts that the model generates.")
    report: ReportLMConfig = Field(ReportLMConfig(title="Window language model"), description="HTML report.")


DEFAULT_CONFIG = WindowLMFlowConfig()


@flow(name="window-lm")
def window_lm(config: WindowLMFlowConfig = DEFAULT_CONFIG) -> Outcome:
    """Train a next-token network on sliding windows over token embeddings, and write a report."""
    with record_run("window-lm", config, config.train.cluster) as recorder:
        text = corpus(locate_source(config.corpus), config=config.corpus)
        tokenization = choose_encoding(text, config.subwords)
        ids = subwords(text, find_encoding(text, tokenization), config=tokenization)
        table = embeddings(ids, table_of(ids, config), config=config.embeddings)
        examples = windows(ids, config=config.windows)
        train = plan_window_lm(examples, table, ids, config.train)
        model = train_window_lm(examples, table, ids, config=train)
        recorder.name_model(model)
        scores = evaluate_lm(model, examples, ids, config=config.evaluate)
        texts = generate_samples(model, config=config.samples)
        page = report_lm(model, scores, texts, config=config.report)
        create_markdown_artifact(markdown(model, scores, texts, config.report), key="report")
        return recorder.outcome(model, scores, page)


def table_of(ids: Artifact, config: WindowLMFlowConfig) -> Artifact | EmbeddingSource:
    """Return the embeddings: word vectors trained on the tokens, or the source that the config names."""
    if config.embeddings.source != FROM_FLOW:
        return locate_embeddings(config.embeddings)
    skipgrams = pairs(ids, ids, config=config.pairs) if config.pairs.mode == "stored" else ids
    negatives = negative_sampling(ids, config=NoiseConfig())
    return train_word2vec(skipgrams, negatives, ids, config=config.vectors.reading(config.pairs))
