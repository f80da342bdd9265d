"""Fine-tuned encoders as a family of classifiers."""

from pathlib import Path

from lexloom.models.registry import ModelFamily
from lexloom.models.sentiment.classifier import Classifier

FAMILY = ModelFamily(
    kind="sentiment",
    title="sentiment classifier",
    stage="train_sentiment",
    capability="classify",
    reads_other_folders=True,  # any checkpoint of transformers for sequence classification
)


def load(folder: Path, device: str = "cpu") -> Classifier:
    """Load the classifier in `folder`; raise the errors of `Classifier.load`."""
    return Classifier.load(folder, device)
