"""Samples: what a language model writes, to look at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lexloom.models.language_model import load_language_model
from lexloom.models.sampling import NextLogits, Sampling, sample_text
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.tasks.display import console
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.store.stage import stage

FILE = "samples.json"
IN_TRAINING = Sampling(max_tokens=64, temperature=0.8, top_p=0.95)


class SamplesConfig(BaseModel):
    """Prompts and sampling options of the sample texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: list[str] = Field(
        ["", "", ""],
        min_length=1,
        max_length=20,
        description="Prompts to continue, one sample each; an empty prompt begins a new text.",
    )
    tokens: int = Field(120, ge=1, le=10_000, description="Maximum number of tokens of a sample.")
    temperature: float = Field(
        0.8, ge=0, le=10, description="Divisor of the logits; 0 always takes the most likely token."
    )
    top_p: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Sample from the smallest set of tokens whose probabilities sum to this (nucleus"
        " sampling).",
    )
    seed: int = Field(1, ge=0, description="Random seed of the samples.")

    def sampling(self) -> Sampling:
        return Sampling(
            max_tokens=self.tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed
        )


class Sample(BaseModel):
    prompt: str
    text: str = Field(description="what the model generated after the prompt")


class Samples(BaseModel):
    """What `samples.json` holds."""

    samples: list[Sample]


def read_samples(artifact: Artifact) -> list[Sample]:
    return Samples.model_validate_json((artifact.folder / FILE).read_bytes()).samples


@stage(version=2)
def samples(model: Artifact, config: SamplesConfig, out: Path) -> Summary:
    """Writes `samples.json`: what the model writes behind each prompt, normalised as its training text was.

    Raises ValueError for a prompt with characters that the model does not know.
    """
    writer = load_language_model(model.folder)
    prompts = [writer.prompt(prompt) for prompt in config.prompts]
    texts = [""] * len(prompts)
    written = 0
    with console.bar("samples", total=config.tokens) as bar:
        for pieces in writer.generate(config.prompts, config.sampling()):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
            written += 1
            bar.update(written)
    found = [Sample(prompt=prompt, text=text) for prompt, text in zip(prompts, texts, strict=True)]
    (out / FILE).write_text(Samples(samples=found).model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Summary(
        rows_in=len(found),
        unit_in="prompts",
        rows=sum(len(text) for text in texts),
        unit="characters written",
    )


def written(tokenizer: Path, reader: Callable[[Any], NextLogits], trainable: Any) -> str:
    """A text from its beginning by a model in training: a job's `sample`, for a trainable with a `module`."""
    pieces = sample_text(reader(trainable.module), Tokenizer.load(tokenizer), [""], IN_TRAINING)
    return "".join(piece for (piece,) in pieces)
