"""Train a transformer language model."""

import sys

if __name__ == "__main__":  # before Prefect is imported, since it reads its logging settings just then
    from lexloom.deployments.cli.main import main

    sys.exit(main(["transformer-lm", *sys.argv[1:]]))

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from lexloom.flows.config import FlowConfig
from lexloom.flows.run import Outcome, story
from lexloom.tasks.bpe_tokens import SubwordsConfig, locate_encoding, subwords
from lexloom.tasks.corpus import WrittenCorpusConfig, corpus, locate_source
from lexloom.tasks.evaluate.language_model import EvaluateLMConfig, evaluate_lm, highlights
from lexloom.tasks.generate import SamplesConfig, samples
from lexloom.tasks.report.language_model import ReportLMConfig, markdown, report_lm
from lexloom.tasks.train.transformer import TrainTransformerConfig, train_transformer
from lexloom.tasks.windows import WindowsConfig, windows

__all__ = ["TransformerLMFlowConfig", "highlights", "transformer_lm"]


class TransformerLMFlowConfig(FlowConfig):
    """Everything that can be said about a transformer-lm run, in the order in which the stages use it."""

    corpus: WrittenCorpusConfig = Field(
        WrittenCorpusConfig(), description="the text", json_schema_extra={"position": 0}
    )
    subwords: SubwordsConfig = Field(
        SubwordsConfig(),
        description="text as tokens, and what is held out",
        json_schema_extra={"position": 1},
    )
    within_documents: bool = Field(
        False, description="let no context reach into another document", json_schema_extra={"position": 2}
    )
    train: TrainTransformerConfig = Field(
        TrainTransformerConfig(), description="model and training", json_schema_extra={"position": 3}
    )
    evaluate: EvaluateLMConfig = Field(
        EvaluateLMConfig(), description="figures and baselines", json_schema_extra={"position": 4}
    )
    samples: SamplesConfig = Field(
        SamplesConfig(), description="what the model is asked to write", json_schema_extra={"position": 5}
    )
    report: ReportLMConfig = Field(
        ReportLMConfig(title="Transformer language model"),
        description="the report's page",
        json_schema_extra={"position": 6},
    )

    def windows(self) -> WindowsConfig:
        """Contexts side by side, and one token more, so that each token but the first is predicted once."""
        context = self.train.context
        return WindowsConfig(size=context + 1, stride=context, across_documents=not self.within_documents)


DEFAULT_CONFIG = TransformerLMFlowConfig()


@flow(name="transformer-lm")
def transformer_lm(config: TransformerLMFlowConfig = DEFAULT_CONFIG) -> Outcome:
    """Trains a transformer on a corpus, lets it write, and writes a report."""
    with story("transformer-lm", config.train.cluster) as told:
        text = corpus(locate_source(config.corpus), config=config.corpus)
        ids = subwords(text, locate_encoding(config.subwords), config=config.subwords)
        examples = windows(ids, config=config.windows())
        model = train_transformer(examples, ids, config=config.train)
        scores = evaluate_lm(model, examples, ids, config=config.evaluate)
        texts = samples(model, config=config.samples)
        page = report_lm(model, scores, texts, config=config.report)
        create_markdown_artifact(markdown(model, scores, texts, config.report), key="report")
        return told.outcome(model, scores, page)
