"""Train an LSTM language model."""

from lexloom_lstm.train import TrainLSTMConfig, train_lstm_lm
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
from lexloom.tasks.windows import WindowsConfig, windows

__all__ = ["LSTMFlowConfig", "highlights", "lstm_lm"]


class LSTMFlowConfig(FlowConfig):
    corpus: WrittenCorpusConfig = Field(WrittenCorpusConfig(), description="the text")
    subwords: SubwordsConfig = Field(SubwordsConfig(), description="text as tokens, and what is held out")
    train: TrainLSTMConfig = Field(TrainLSTMConfig(), description="model and training")
    evaluate: EvaluateLMConfig = Field(EvaluateLMConfig(), description="figures and baselines")
    samples: SamplesConfig = Field(SamplesConfig(), description="what the model is asked to write")
    report: ReportLMConfig = Field(ReportLMConfig(title="LSTM language model"), description="the report")

    def windows(self) -> WindowsConfig:
        context = self.train.context
        return WindowsConfig(size=context + 1, stride=context)


DEFAULT_CONFIG = LSTMFlowConfig()


@flow(name="lstm-lm")
def lstm_lm(config: LSTMFlowConfig = DEFAULT_CONFIG) -> Outcome:
    """Train an LSTM on a corpus, generate samples, and write a report."""
    with story("lstm-lm", config.train.cluster) as told:
        text = corpus(locate_source(config.corpus), config=config.corpus)
        ids = subwords(text, locate_encoding(config.subwords), config=config.subwords)
        examples = windows(ids, config=config.windows())
        model = train_lstm_lm(examples, ids, config=config.train)
        scores = evaluate_lm(model, examples, ids, config=config.evaluate)
        texts = samples(model, config=config.samples)
        page = report_lm(model, scores, texts, config=config.report)
        create_markdown_artifact(markdown(model, scores, texts, config.report), key="report")
        return told.outcome(model, scores, page)
