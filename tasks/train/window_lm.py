"""The training stage of the window language model.

A model folder holds `model.safetensors` (with the embeddings), `config.json`, `tokenizer/`, `metrics.json`
and a model card.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from lexloom.models.precision import Layer, use_bfloat16
from lexloom.models.window_lm import (
    Activation,
    Error,
    Objective,
    Output,
    WindowDecoder,
    WindowLM,
    WindowLMConfig,
    scale_to_unit_rms,
    window_loss,
)
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.embeddings import read_embeddings
from lexloom.tasks.generate_samples import sample_in_training
from lexloom.tasks.store.artifacts import Artifact, Summary, canonical
from lexloom.tasks.store.stage import stage
from lexloom.tasks.subwords import TOKENIZER, read_tokenizer
from lexloom.tasks.train.budget import BudgetedTrainConfig, derived_field, planned_field
from lexloom.tasks.train.outputs import GENERATE, describe_training, restore, save_records, summarize
from lexloom.tasks.train.resources import Resources
from lexloom.tasks.train.run import GradientSync, MatrixPrecision, plan_job, run_job
from lexloom.tasks.vocabulary import read_vocabulary
from lexloom.training.schedules import linear
from lexloom.training.torch_trainable import TorchTrainable

COLUMNS = ("inputs", "label")


WIDTH = 512
# of a run whose epochs or steps are given
DEFAULTS = {"epochs": 5, "batch_size": 1024, "width": WIDTH}


class TrainWindowLMConfig(BudgetedTrainConfig):
    """Training of a window language model with AdamW."""

    planned: ClassVar[tuple[str, ...]] = tuple(DEFAULTS)

    sync: GradientSync = "average"
    objective: Objective = Field(
        "token",
        description="Prediction target: the label's 'token' (cross-entropy) or its 'embedding' (regression).",
    )
    fine_tuned: bool = derived_field(
        "Also train the embeddings, instead of freezing them (default: yes, unless they are the prediction"
        " target)."
    )
    width: int = planned_field("Width of the dense layers", ge=1, le=65_536)
    depth: int = Field(2, ge=1, le=100, description="Number of dense layers.")
    activation: Activation = Field("relu", description="Activation function of the dense layers.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout probability after each dense layer.")
    output: Output = Field(
        "adaptive",
        description="Output layer (objective token): 'adaptive' softmax, 'full' softmax, or full softmax"
        " 'tied' to the embeddings.",
    )
    features: int = Field(
        256,
        ge=1,
        le=65_536,
        description="Input dimension of the softmax; with 'tied', it is the dimension of the embeddings.",
    )
    cutoffs: tuple[int, ...] = Field(
        (2000, 10_000), description="Token ids at which the adaptive softmax's tail clusters begin."
    )
    error: Error = Field(
        "cosine", description="Loss (objective embedding): 'squared' error, or 1 - 'cosine' similarity."
    )
    learning_rate: float = Field(0.003, gt=0, le=10, description="Peak learning rate of AdamW.")
    warm_up: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Share of training used for linear learning-rate warm-up, which is followed by linear"
        " decay to 0.",
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight decay coefficient of AdamW.")
    precision: MatrixPrecision = "auto"

    @classmethod
    def defaults(cls, given: dict[str, Any], length: bool) -> dict[str, Any]:
        fine_tuned = {"fine_tuned": given.get("objective", "token") == "token"}
        return fine_tuned | (DEFAULTS if length else {})

    @model_validator(mode="after")
    def shape_fits(self) -> Self:
        self.shape(vocabulary=max(self.cutoffs, default=0) + 1, context=1, dim=1, padding=0)
        return self

    def shape(self, *, vocabulary: int, context: int, dim: int, padding: int) -> WindowLMConfig:
        """Return the network's shape for a vocabulary, a context and embeddings."""
        return WindowLMConfig(
            vocabulary=vocabulary,
            context=context,
            dim=dim,
            padding=padding,
            width=self.width or WIDTH,
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


@stage(version=5)
def train_window_lm(
    windows: Artifact,
    embeddings: Artifact,
    tokens: Artifact,
    config: TrainWindowLMConfig,
    out: Path,
    scratch: Path,
) -> Summary:
    """Train the network on the window shards and write the model folder.

    If windows are held out, the model is the one with the lowest validation loss; otherwise the last one.

    Raises:
        ValueError: the embeddings do not match the tokens, or the config is not complete.
    """
    config.require_complete()
    tokenizer = read_tokenizer(tokens)
    table = read_embeddings(embeddings)
    if len(table) != tokenizer.size:
        raise ValueError(
            f"there are embeddings for {counted(len(table), 'tokens')}, but the tokenizer has"
            f" {tokenizer.size:,}: build them from the same tokens as the windows"
        )
    size = windows.facts["size"]
    assert isinstance(size, int)
    shape = config.shape(
        vocabulary=tokenizer.size, context=size - 1, dim=table.shape[1], padding=tokenizer.end_of_text
    )
    _, counts = read_vocabulary(tokens)
    make_model = partial(new_model, shape, embeddings, torch.from_numpy(counts.copy()))
    resources = config.resources()
    make_trainable = partial(make_window_trainable, shape, config, resources, make_model)
    others, sync = [embeddings, tokens], config.synchronisation()
    sample = partial(sample_in_training, tokens.folder / TOKENIZER, WindowDecoder)
    job = plan_job(
        config,
        resources,
        make_trainable,
        windows,
        COLUMNS,
        others,
        scratch,
        sync,
        sample,
        validation_examples=config.validation_windows,
    )
    metrics, tensors = run_job(job, resources, unit="windows")
    model = restore(make_model(), tensors)
    model.save(out, {**canonical(config), **tokens.normalization})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    save_records(out, metrics, model_card(shape, metrics, parameters), tokenizer)
    return summarize(metrics, "windows", parameters, "trained parameters")


def make_window_trainable(
    shape: WindowLMConfig,
    config: TrainWindowLMConfig,
    resources: Resources,
    make_model: Callable[[], WindowLM],
) -> TorchTrainable:
    """Return the trainable for the training loop."""
    layer = Layer(-(-config.batch_size // resources.workers), shape.context * shape.dim, shape.width)
    return TorchTrainable(
        make_model,
        window_loss,
        partial(make_optimizer, config.learning_rate, config.weight_decay),
        schedule=partial(linear, warm_up=config.warm_up),
        bfloat16=partial(use_bfloat16, config.precision, layer),
        threads=resources.threads,
        seed=config.seed,
    )


def new_model(shape: WindowLMConfig, embeddings: Artifact, counts: torch.Tensor) -> WindowLM:
    """Create the network on a worker, which reads the embeddings from the store instead of receiving them."""
    return WindowLM(shape, scale_to_unit_rms(read_embeddings(embeddings)), counts)


def make_optimizer(learning_rate: float, weight_decay: float, module: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW with weight decay for all parameters except embeddings, biases and norms."""
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


def model_card(shape: WindowLMConfig, metrics: dict[str, Any], parameters: int) -> str:
    """Return the model card: what the model is, how it was trained, how to use it."""
    target = "the next token" if shape.objective == "token" else "the embedding of the next token"
    embeddings = "trained" if shape.fine_tuned else "frozen"
    return f"""# Window language model

Predicts {target} from the {shape.context} before it: {shape.depth} dense layers of {shape.width} over
{embeddings} embeddings of {shape.dim} floats; {shape.vocabulary:,} tokens, {parameters:,} trained parameters.
{describe_training(metrics, "windows")}

| file | content |
|---|---|
| `model.safetensors` | the weights and the embeddings |
| `config.json`, `metrics.json` | the network's shape, the parameters and metrics of the training |
| `tokenizer/` | the tokenizer |

{GENERATE}
transformers can't load this folder, since it has no such architecture.
"""
