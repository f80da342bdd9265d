"""Trains a window language model: joins the network with the training loop, and writes the model folder.

A model folder holds `model.safetensors` (with the embeddings), `config.json`, `tokenizer/`, `metrics.json`
and a model card.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from lexloom.models.language_model import Windows
from lexloom.models.precision import Layer, Precision, use_bfloat16
from lexloom.models.window_lm import (
    Activation,
    Error,
    Objective,
    Output,
    WindowLM,
    WindowLMConfig,
    scale_to_unit_rms,
    window_loss,
)
from lexloom.tasks.bpe_tokens import TOKENIZER, read_tokenizer
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.embeddings import read_embeddings
from lexloom.tasks.generate import written
from lexloom.tasks.store.artifacts import Artifact, Summary, canonical
from lexloom.tasks.store.stage import stage
from lexloom.tasks.train.run import GradientTrainConfig, facts_of, plan_job, run_job, write_json
from lexloom.tasks.vocabulary import read_vocabulary
from lexloom.training.schedules import linear
from lexloom.training.torch_trainable import TorchTrainable

COLUMNS = ("inputs", "label")


class TrainWindowLMConfig(GradientTrainConfig):
    """A dense network on windows of embeddings, trained by Adam."""

    epochs: int = Field(5, ge=1, description="passes over all windows", json_schema_extra={"position": 0})
    batch_size: int = Field(
        1024, ge=8, description="windows of one step, over all workers", json_schema_extra={"position": 3}
    )
    sync: Literal["all_reduce", "average", "diloco"] = Field(
        "average",
        description="how workers agree: gradients every step; the mean of their parameters every sync_period"
        " steps; or their mean move fed to an outer optimizer",
        json_schema_extra={"position": 21},
    )
    objective: Objective = Field(
        "token",
        description="what is predicted: the label, by cross-entropy; or its embedding, by regression",
        json_schema_extra={"position": 50},
    )
    fine_tuned: bool = Field(
        False,
        description="train the embeddings too; else they stay as they came",
        json_schema_extra={"position": 51},
    )
    width: int = Field(
        512, ge=1, le=65_536, description="of the dense layers", json_schema_extra={"position": 52}
    )
    depth: int = Field(
        2, ge=1, le=100, description="how many dense layers there are", json_schema_extra={"position": 53}
    )
    activation: Activation = Field(
        "relu", description="of the dense layers", json_schema_extra={"position": 54}
    )
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the dense layers' outputs that is dropped in training",
        json_schema_extra={"position": 55},
    )
    output: Output = Field(
        "adaptive",
        description="how tokens are told from each other (objective token): an adaptive softmax, a full one,"
        " or a full one whose table is the embeddings'",
        json_schema_extra={"position": 56},
    )
    features: int = Field(
        128,
        ge=1,
        le=65_536,
        description="floats that the softmax reads; under 'tied', as many as an embedding has",
        json_schema_extra={"position": 57},
    )
    cutoffs: tuple[int, ...] = Field(
        (2000, 10_000),
        description="ids at which the tails of the adaptive softmax begin",
        json_schema_extra={"position": 58},
    )
    error: Error = Field(
        "cosine",
        description="of the objective embedding: the squared error, or 1 - cosine",
        json_schema_extra={"position": 59},
    )
    learning_rate: float = Field(
        0.002, gt=0, le=10, description="Adam's, at its highest", json_schema_extra={"position": 60}
    )
    warm_up: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="share of the training in which the rate rises; then it falls to 0, along a line",
        json_schema_extra={"position": 61},
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the rate by which weights shrink each step (AdamW)",
        json_schema_extra={"position": 62},
    )

    precision: Precision = Field(
        "auto",
        description="of matrix products; 'auto' takes bfloat16 where it is measured to be faster, and keeps"
        " to it when a run is resumed",
        json_schema_extra={"position": 63},
    )

    @model_validator(mode="after")
    def shape_fits(self) -> Self:
        self.shape(vocabulary=max(self.cutoffs, default=0) + 1, context=1, dim=1, padding=0)
        return self

    def shape(self, *, vocabulary: int, context: int, dim: int, padding: int) -> WindowLMConfig:
        """The network's shape on certain data."""
        return WindowLMConfig(
            vocabulary=vocabulary,
            context=context,
            dim=dim,
            padding=padding,
            width=self.width,
            depth=self.depth,
            activation=self.activation,
            dropout=self.dropout,
            fine_tuned=self.fine_tuned,
            objective=self.objective,
            output=self.output,
            features=self.features,
            cutoffs=self.cutoffs,
            error=self.error,
        )


@stage(version=3)
def train_window_lm(
    windows: Artifact,
    embeddings: Artifact,
    tokens: Artifact,
    config: TrainWindowLMConfig,
    out: Path,
    scratch: Path,
) -> Summary:
    """Trains the network on the window shards and writes the model folder.

    The model is the one with the least validation loss where windows are held out, else the last. ValueError
    where embeddings and tokens do not belong together.
    """
    tokenizer = read_tokenizer(tokens)
    table = read_embeddings(embeddings)
    if len(table) != tokenizer.size:
        raise ValueError(
            f"there are embeddings of {counted(len(table), 'tokens')}, but the tokenizer has"
            f" {tokenizer.size:,}: make them from the same tokens as the windows"
        )
    size = windows.facts["size"]
    assert isinstance(size, int)
    shape = config.shape(
        vocabulary=tokenizer.size, context=size - 1, dim=table.shape[1], padding=tokenizer.end_of_text
    )
    _, counts = read_vocabulary(tokens)
    make_model = partial(new_model, shape, embeddings, torch.from_numpy(counts.copy()))
    layer = Layer(-(-config.batch_size // config.workers), shape.context * shape.dim, shape.width)
    make_trainable = partial(
        TorchTrainable,
        make_model,
        window_loss,
        partial(adam, config.learning_rate, config.weight_decay),
        schedule=partial(linear, warm_up=config.warm_up),
        bfloat16=partial(use_bfloat16, config.precision, layer),
        threads=config.threads,
        seed=config.seed,
    )
    others, sync = [embeddings, tokens], config.synchronisation()
    sample = partial(written, tokens.folder / TOKENIZER, Windows)
    job = plan_job(config, make_trainable, windows, COLUMNS, others, scratch, sync, sample)
    metrics, tensors = run_job(job, config, unit="windows")
    model = make_model()
    model.load_state_dict(
        {
            name.removeprefix("module."): value
            for name, value in tensors.items()
            if name.startswith("module.")
        },
        strict=False,  # shared tensors are saved once
    )
    model.save(out, {**canonical(config), **tokens.normalization})
    tokenizer.save(out / TOKENIZER)
    write_json(out / "metrics.json", metrics)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    (out / "README.md").write_text(card(shape, metrics, parameters), encoding="utf-8")
    return Summary(
        rows_in=metrics["examples"],
        unit_in=f"windows in {counted(metrics['epochs'], 'epochs')}",
        rows=parameters,
        unit="trained parameters",
        facts=facts_of(metrics),
    )


def new_model(shape: WindowLMConfig, embeddings: Artifact, counts: torch.Tensor) -> WindowLM:
    """Made on each worker, from the file that all of them see: the table does not travel."""
    return WindowLM(shape, scale_to_unit_rms(read_embeddings(embeddings)), counts)


def adam(learning_rate: float, weight_decay: float, module: nn.Module) -> torch.optim.Optimizer:
    """Weights decay; embeddings, biases and norms do not."""
    trained = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
    decays = [each.ndim > 1 and name != "embeddings" for name, each in trained]
    groups = [
        {
            "params": [each for (_, each), decayed in zip(trained, decays, strict=True) if decayed is wanted],
            "weight_decay": weight_decay if wanted else 0.0,
        }
        for wanted in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def card(shape: WindowLMConfig, metrics: dict[str, Any], parameters: int) -> str:
    """The model card: what it is, how it was made, how to load it."""
    what = "the next token" if shape.objective == "token" else "the embedding of the next token"
    embeddings = "trained with it" if shape.fine_tuned else "that stayed as they came"
    held_out = f", validation loss {metrics['validation_loss']:.4f}" if "validation_loss" in metrics else ""
    return f"""# Window language model

Predicts {what} from the {shape.context} before it: {shape.depth} dense layers of {shape.width} over
embeddings of {shape.dim} floats {embeddings}; {shape.vocabulary:,} tokens, {parameters:,} trained parameters.
Trained by Lexloom on {counted(metrics["examples"], "windows")} ({counted(metrics["epochs"], "epochs")}) in
{metrics["seconds"]:.1f} seconds: mean loss in the last epoch {metrics["loss"]:.4f}{held_out}.

| file | what is in it |
|---|---|
| `model.safetensors` | the weights, and the embeddings |
| `config.json`, `metrics.json` | the network's shape, how it was trained, and how it went |
| `tokenizer/` | text to ids and back, for `lexloom.models.tokenizer.tokenizer.Tokenizer` |

```python
from pathlib import Path

import torch

from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.window_lm import WindowLM

folder = Path("this folder")
tokenizer, model = Tokenizer.load(folder / "tokenizer"), WindowLM.load(folder)
ids = torch.tensor([tokenizer.encode("The people of the")])
for token in model.next_logits(ids)[0].topk(5).indices.tolist():
    print(repr(tokenizer.decode([token])))
```

transformers can't load this folder: none of its architectures is this network.
"""
