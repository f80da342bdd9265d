"""Train an LSTM language model."""

from lexloom_lstm.train import TrainLSTMConfig, train_lstm_lm
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from lexloom.flows.config import FlowConfig
from lexloom.flows.run import Outcome, record_run
from lexloom.tasks.corpus import WrittenCorpusConfig, corpus, locate_source
from lexloom.tasks.evaluate.language_model import EvaluateLMConfig, evaluate_lm, highlights
from lexloom.tasks.generate_samples import SamplesConfig, generate_samples
from lexloom.tasks.report.language_model import ReportLMConfig, markdown, report_lm
from lexloom.tasks.subwords import SubwordsConfig, subwords
from lexloom.tasks.train_tokenizer import choose_encoding, find_encoding
from lexloom.tasks.windows import WindowsConfig, windows

__all__ = ["LSTMFlowConfig", "highlights", "lstm_lm"]


class LSTMFlowConfig(FlowConfig):
    corpus: WrittenCorpusConfig = Field(
        WrittenCorpusConfig(), description="Source and normalization of the text."
    )
    subwords: SubwordsConfig = Field(SubwordsConfig(), description="Tokenization and the validation split.")
    train: TrainLSTMConfig = Field(TrainLSTMConfig(), description="Model and training.")
    evaluate: EvaluateLMConfig = Field(EvaluateLMConfig(), description="Metrics and baselines.")
    samples: SamplesConfig = Field(SamplesConfig(), description="Sample texts that the model generates.")
    report: ReportLMConfig = Field(ReportLMConfig(title="LSTM language model"), description="HTML report.")

    def windows(self) -> WindowsConfig:
        context = self.train.context
        return WindowsConfig(size=context + 1, stride=context)


DEFAULT_CONFIG = LSTMFlowConfig()


@flow(name="lstm-lm")
def lstm_lm(config: LSTMFlowConfig = DEFAULT_CONFIG) -> Outcome:
    """Train an LSTM on a corpus, generate samples, and write a report."""
    with record_run("lstm-lm", config, config.train.cluster) as recorder:
        text = corpus(locate_source(config.corpus), config=config.corpus)
        tokenization = choose_encoding(text, config.subwords)
        ids = subwords(text, find_encoding(text, tokenization), config=tokenization)
        examples = windows(ids, config=config.windows())
        model = train_lstm_lm(examples, ids, config=config.train)
        recorder.name_model(model)
        scores = evaluate_lm(model, examples, ids, config=config.evaluate)
        texts = generate_samples(model, config=config.samples)
        page = report_lm(model, scores, texts, config=config.report)
        create_markdown_artifact(markdown(model, scores, texts, config.report), key="report")
        return recorder.outcome(model, scores, page)
