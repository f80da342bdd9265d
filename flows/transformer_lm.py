"""Train a transformer language model."""

import sys

if __name__ == "__main__":  # before Prefect is imported, which reads its logging settings on import
    from lexloom.flows.command import main

    sys.exit(main("transformer-lm"))

from typing import Self

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field, model_validator

from lexloom.flows.config import FlowConfig
from lexloom.flows.run import Outcome, record_run
from lexloom.tasks.corpus import WrittenCorpusConfig, corpus, locate_source
from lexloom.tasks.evaluate.language_model import EvaluateLMConfig, evaluate_lm, highlights
from lexloom.tasks.generate_samples import SamplesConfig, generate_samples
from lexloom.tasks.plan_transformer import plan_transformer
from lexloom.tasks.report.language_model import ReportLMConfig, markdown, report_lm
from lexloom.tasks.sources.initial_model import locate_initial_model
from lexloom.tasks.subwords import SubwordsConfig, subwords
from lexloom.tasks.train.fine_tuning import continue_from, tokenization_of
from lexloom.tasks.train.transformer import TrainTransformerConfig, train_transformer
from lexloom.tasks.train_tokenizer import choose_encoding, find_encoding
from lexloom.tasks.windows import WindowsConfig, windows

__all__ = ["TransformerLMFlowConfig", "highlights", "transformer_lm"]


class TransformerLMFlowConfig(FlowConfig):
    """Parameters of a transformer-lm run, in the order of its stages."""

    main_parameters = (
        "corpus.source",
        "corpus.text_column",
        "corpus.limit",
        "subwords.encoding",
        "subwords.vocab_size",
        "train.init_from",
        "train.minutes",
        "train.preset",
        "train.layers",
        "train.width",
        "train.context",
        "train.epochs",
        "train.batch_size",
        "train.workers",
        "train.device",
        "train.runner",
        "train.ray_address",
        "train.seed",
        "samples.prompts",
    )

    corpus: WrittenCorpusConfig = Field(
        WrittenCorpusConfig(), description="Source and normalization of the text."
    )
    subwords: SubwordsConfig = Field(SubwordsConfig(), description="Tokenization and the validation split.")
    within_documents: bool = Field(False, description="Restrict each context to one document.")
    train: TrainTransformerConfig = Field(TrainTransformerConfig(), description="Model and training.")
    evaluate: EvaluateLMConfig = Field(EvaluateLMConfig(), description="Metrics and baselines.")
    samples: SamplesConfig = Field(SamplesConfig(), description="Sample texts that the model generates.")
    report: ReportLMConfig = Field(
        ReportLMConfig(title="Transformer language model"), description="HTML report."
    )

    @model_validator(mode="after")
    def tokenizer_is_the_initial_models(self) -> Self:
        given = self.subwords.model_dump(include={"encoding", "vocab_size", "ranks"})
        default = SubwordsConfig().model_dump(include=set(given))
        if self.train.init_from is not None and given != default:
            name = next(name for name in given if given[name] != default[name])
            raise ValueError(f"the model of init_from determines the tokenizer: omit {name}")
        return self

    def windows(self) -> WindowsConfig:
        """Return the config of adjacent windows of context + 1 tokens; each token is predicted once."""
        context = self.train.context
        return WindowsConfig(size=context + 1, stride=context, across_documents=not self.within_documents)


DEFAULT_CONFIG = TransformerLMFlowConfig()


@flow(name="transformer-lm")
def transformer_lm(config: TransformerLMFlowConfig = DEFAULT_CONFIG) -> Outcome:
    """Train a transformer on a corpus, evaluate it, generate samples, and write a report."""
    with record_run("transformer-lm", config, config.train.cluster) as recorder:
        text = corpus(locate_source(config.corpus), config=config.corpus)
        if config.train.init_from is None:
            tokenization = choose_encoding(text, config.subwords)
            encoding = find_encoding(text, tokenization)
        else:
            initial = locate_initial_model(config.train.init_from)
            config = config.model_copy(update={"train": continue_from(initial, config.train)})
            tokenization, encoding = tokenization_of(initial, config.subwords), initial.encoding()
        ids = subwords(text, encoding, config=tokenization)
        config = config.model_copy(update={"train": plan_transformer(ids, config.train)})
        examples = windows(ids, config=config.windows())
        model = train_transformer(examples, ids, config=config.train)
        recorder.name_model(model)
        scores = evaluate_lm(model, examples, ids, config=config.evaluate)
        texts = generate_samples(model, config=config.samples)
        page = report_lm(model, scores, texts, config=config.report)
        create_markdown_artifact(markdown(model, scores, texts, config.report), key="report")
        return recorder.outcome(model, scores, page)
