"""Text samples of a language model."""

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
NO_TEXT = "prompts without generated text"
TRAINING_SAMPLING = Sampling(max_tokens=64, temperature=0.8, top_p=0.95)


class SamplesConfig(BaseModel):
    """Prompts and sampling options of the sample texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: list[str] = Field(
        ["", "", ""],
        min_length=1,
        max_length=20,
        description="Prompts to continue, one sample each; an empty prompt begins a new text.",
    )
    tokens: int = Field(120, ge=1, le=10_000, description="Maximum number of tokens per sample.")
    temperature: float = Field(
        0.8, ge=0, le=10, description="Sampling temperature, by which the logits are divided; 0 is greedy."
    )
    top_p: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Sample from the smallest set of tokens whose probabilities sum to at least this (nucleus"
        " sampling).",
    )
    seed: int = Field(1, ge=0, description="Random seed for sampling.")
    stop_at_end: bool = Field(
        False,
        description="End a sample at the first end-of-text token, instead of continuing with another text.",
    )

    def sampling(self) -> Sampling:
        return Sampling(
            max_tokens=self.tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop_at_end=self.stop_at_end,
        )


class Sample(BaseModel):
    prompt: str
    text: str = Field(description="continuation that the model generated")


class Samples(BaseModel):
    """The content of `samples.json`."""

    samples: list[Sample]


def read_samples(artifact: Artifact) -> list[Sample]:
    return Samples.model_validate_json((artifact.folder / FILE).read_bytes()).samples


@stage(version=3)
def generate_samples(model: Artifact, config: SamplesConfig, out: Path) -> Summary:
    """Write `samples.json`: the text that the model generates for each prompt, and note empty ones.

    Prompts are normalized like the training text. Raises ValueError if a prompt has a character that the
    model does not know.
    """
    model_to_sample = load_language_model(model.folder)
    prompts = [model_to_sample.prompt(prompt) for prompt in config.prompts]
    texts = [""] * len(prompts)
    done = 0
    with console.bar("samples", total=config.tokens) as bar:
        for pieces in model_to_sample.generate(config.prompts, config.sampling()):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
            done += 1
            bar.update(done)
    found = [Sample(prompt=prompt, text=text) for prompt, text in zip(prompts, texts, strict=True)]
    (out / FILE).write_text(Samples(samples=found).model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Summary(
        rows_in=len(found),
        unit_in="prompts",
        rows=sum(len(text) for text in texts),
        unit="characters",
        notes={NO_TEXT: sum(not sample.text.strip() for sample in found)},
    )


def sample_in_training(tokenizer: Path, make_decoder: Callable[[Any], NextLogits], trainable: Any) -> str:
    """Generate a text with a model in training; the `sample` of a job whose trainable has a `module`."""
    pieces = sample_text(make_decoder(trainable.module), Tokenizer.load(tokenizer), [""], TRAINING_SAMPLING)
    return "".join(piece for (piece,) in pieces)
