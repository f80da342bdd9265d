"""The training stage of the transformer.

A model folder contains `model.safetensors`, `config.json`, `tokenizer.json` and others for transformers,
`lexloom.json` and `tokenizer/` for Lexloom, `metrics.json` and a model card.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator
from torch import nn
from torch.optim import Optimizer

from lexloom.models.compilation import compile_modules, without_compilation
from lexloom.models.normalization import active_rules, card_note
from lexloom.models.optim import OptimizerConfig, make_optimizer
from lexloom.models.precision import Layer, use_bfloat16
from lexloom.models.sampling import NextLogits
from lexloom.models.transformer.hf_io import export_tokenizer, save
from lexloom.models.transformer.model import CachedDecoder, Transformer, TransformerConfig, next_token_loss
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.generate_samples import sample_in_training
from lexloom.tasks.store.artifacts import NORMALIZATION, Artifact, RunOnly, Summary
from lexloom.tasks.store.stage import stage
from lexloom.tasks.subwords import TOKENIZER, read_tokenizer
from lexloom.tasks.train.budget import BudgetedTrainConfig, planned_field
from lexloom.tasks.train.outputs import (
    GENERATE,
    describe_training,
    restore,
    save_records,
    select_facts,
    summarize,
)
from lexloom.tasks.train.resources import Resources
from lexloom.tasks.train.run import MatrixPrecision, plan_job, run_job
from lexloom.tasks.train.transformer_defaults import (
    ARCHITECTURE,
    PRESETS,
    Preset,
    candidate_sizes,
    fine_tuning_defaults,
)
from lexloom.training.schedules import warm_up_stable_decay
from lexloom.training.torch_trainable import TorchTrainable

COLUMNS = ("inputs", "label")
ROUND_ABOVE, ROUND_TO = 4096, 64  # a large vocabulary is rounded up: GPUs multiply whole tiles faster


class TrainTransformerConfig(BudgetedTrainConfig):
    """Training of a transformer language model.

    Parameters that are not given come from the preset, or from a plan for the time budget (tasks/plan.py).
    """

    planned: ClassVar[tuple[str, ...]] = (
        *("layers", "width", "heads", "context", "tie_embeddings", "dropout"),
        *("epochs", "batch_size", "matrix_learning_rate", "learning_rate", "momentum"),
    )
    most_epochs: ClassVar[float] = 20.0  # of a plan

    preset: Preset = Field(
        "auto",
        description="Size of the model: tiny (0.8M parameters, for a CPU), char (10.6M, for characters),"
        " small (124M), or 'auto': planned for the time budget, or tiny for a given number of"
        " epochs or steps.",
    )
    layers: int = planned_field("Number of transformer blocks", ge=1, le=1024)
    width: int = planned_field("Dimension of the residual stream", ge=1, le=1 << 16)
    heads: int = planned_field("Number of attention heads", ge=1)
    kv_heads: int = Field(0, ge=0, description="Number of key and value heads; 0 for as many as query heads.")
    ffn_dim: int = Field(0, ge=0, description="Width of the feed-forward layers; 0 for four times the width.")
    context: int = planned_field("Context length in tokens", ge=1, le=1 << 20)
    style: Literal["modern", "gpt2"] = Field(
        "modern", description="Architecture: 'modern' is Qwen3's, 'gpt2' is GPT-2's."
    )
    tie_embeddings: bool = planned_field("Share the weights of the input and output embeddings")
    dropout: float = planned_field("Dropout probability", ge=0, lt=1)

    # not part of the key: `FineTuneTransformerConfig` contains a digest of its content
    init_from: Annotated[str | None, RunOnly()] = Field(
        None,
        min_length=1,
        description="Pretrained decoder whose training is continued, with its tokenizer: a folder, or"
        " hf:owner/name[@revision] on the Hugging Face Hub. GPT-2, Llama, Qwen2, Qwen3 and models trained by"
        " Lexloom are supported. If not given, training starts from random weights.",
    )
    lora_rank: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Train only low-rank adapters (LoRA) of this rank, which are merged into the pretrained"
        " weights at the end; if not given, all weights are trained.",
    )
    optimizer: Literal["muon", "adamw"] = Field(
        "muon",
        description="'muon' trains hidden matrices with Muon and the rest with AdamW; 'adamw' trains all with"
        " AdamW.",
    )
    matrix_learning_rate: float = planned_field("Learning rate of the hidden matrices", gt=0, le=10)
    learning_rate: float = planned_field("Learning rate of all other parameters", gt=0, le=10)
    momentum: float = planned_field("Momentum of Muon", ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, le=10, description="Weight decay of matrices and embeddings.")
    warm_up: float = Field(0.0, ge=0, lt=1, description="Share of training used for learning-rate warm-up.")
    decay: float = Field(
        0.5, ge=0, le=1, description="Share of training, at its end, used for learning-rate decay."
    )
    final: float = Field(0.0, ge=0, le=1, description="Final learning rates, as a fraction of their peaks.")
    clip: float | None = Field(None, gt=0, description="Gradient clipping: maximum norm of the gradients.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Micro-batch size: windows per forward and backward pass (default: from the preset, or"
        " the whole batch).",
    )
    precision: MatrixPrecision = "auto"
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether to use torch.compile; 'auto' uses it only on a GPU, since compilation on a CPU"
        " takes longer than a short run.",
    )

    @classmethod
    def defaults(cls, given: dict[str, Any], length: bool) -> dict[str, Any]:
        if given.get("init_from") is not None:
            return fine_tuning_defaults(given, length)
        preset = given.get("preset", "auto")
        if preset == "auto":
            return PRESETS["tiny"] if length else {}
        planned = ("epochs", "batch_size") if "minutes" in given else ()
        return {name: value for name, value in PRESETS.get(preset, {}).items() if name not in planned}

    @model_validator(mode="before")
    @classmethod
    def initial_model_fits(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("init_from") is None:
            if given.get("lora_rank") is not None:
                raise ValueError("lora_rank is only used to continue a pretrained model: set init_from")
            return given
        for name in ARCHITECTURE:
            if given.get(name) not in (None, cls.model_fields[name].default):
                raise ValueError(f"the model of init_from determines {name}: omit {name}")
        return given

    @model_validator(mode="after")
    def network_fits(self) -> Self:
        if self.init_from is not None:
            return self
        if self.is_complete:
            self.network(vocabulary=1)
        else:
            self.shapes()
        return self

    def network(self, vocabulary: int, end_of_text: int | None = None) -> TransformerConfig:
        """Return the network's config.

        Raises:
            ValueError: the sizes are inconsistent.
        """
        sizes = ("layers", "width", "heads", "kv_heads", "ffn_dim", "context")
        names = (*sizes, "style", "tie_embeddings", "dropout")
        shape = {name: getattr(self, name) for name in names}
        return TransformerConfig(vocabulary=vocabulary, end_of_text=end_of_text, **shape)

    def shapes(self) -> list[dict[str, Any]]:
        """Return the sizes that a plan chooses from, in order of cost."""
        names = {"layers", "width", "heads", "kv_heads", "ffn_dim", "style"}
        return candidate_sizes(self.model_dump(include=names, exclude_none=True))

    def new_network(self, network: TransformerConfig) -> Transformer:
        """Return the network before training."""
        return Transformer(network)

    def finish(self, trained: Transformer) -> Transformer:
        """Return the network that is saved after training."""
        return trained

    def origin(self) -> dict[str, str]:
        """Return what the network was before training, for `lexloom.json`; empty for random weights."""
        return {}


@stage(version=6)
def train_transformer(
    windows: Artifact, tokens: Artifact, config: TrainTransformerConfig, out: Path, scratch: Path
) -> Summary:
    """Train on windows of context + 1 tokens and write the model folder.

    Raises:
        ValueError: the windows do not have context + 1 tokens, or the config is not complete.
    """
    config.require_complete()
    size = cast(int, windows.summary.facts["size"])
    if size != config.context + 1:
        raise ValueError(
            f"the windows have {counted(size, 'tokens')}, but a context of {config.context} needs"
            f" {config.context + 1}: set the windows' size to that, and their stride to {config.context}"
        )
    tokenizer = read_tokenizer(tokens)
    network = config.network(round_up_vocabulary(tokenizer.size), tokenizer.end_of_text)
    resources = config.resources()
    make = partial(make_trainable, network, config, resources)
    sample = partial(sample_in_training, tokens.folder / TOKENIZER, make_decoder)
    job = plan_job(
        *(config, resources, make, windows, COLUMNS, [tokens], scratch, config.synchronisation(), sample),
        validation_examples=config.validation_windows,
    )
    metrics, tensors = run_job(job, resources, unit="windows")
    model = config.finish(restore(config.new_network(network), tensors))
    metrics = add_token_metrics(metrics, windows, config.context)
    save(model, out, {**tokens.normalization, **config.origin()})
    rules = active_rules(tokens.normalization.get(NORMALIZATION))  # type: ignore[arg-type]
    export_tokenizer(tokenizer, network, out, nfc="unicode_nfc" in rules)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    beyond_nfc = [rule for rule in rules if rule != "unicode_nfc"]
    card = model_card(network, parameters, metrics, beyond_nfc, config.init_from)
    save_records(out, metrics, card, tokenizer)
    return summarize(metrics, "windows", parameters, "parameters")


def round_up_vocabulary(vocabulary: int) -> int:
    return vocabulary if vocabulary < ROUND_ABOVE else -(-vocabulary // ROUND_TO) * ROUND_TO


def make_trainable(
    network: TransformerConfig, config: TrainTransformerConfig, resources: Resources
) -> TorchTrainable:
    """Return the trainable for the training loop."""
    optimizer = OptimizerConfig(
        config.optimizer,
        config.matrix_learning_rate,
        config.learning_rate,
        config.momentum,
        weight_decay=config.weight_decay,
    )
    compiled = config.compile == "on" or (config.compile == "auto" and resources.device == "cuda")
    rows = config.micro_batch or -(-config.batch_size // resources.workers)
    layer = Layer(rows * config.context, network.width, network.ffn_dim)
    return TorchTrainable(
        partial(make_network, network, config, resources.device if compiled else None),
        next_token_loss,
        partial(make_transformer_optimizer, optimizer),
        schedule=partial(
            warm_up_stable_decay, warm_up=config.warm_up, decay=config.decay, final=config.final
        ),
        micro_batch=config.micro_batch,
        clip=config.clip,
        bfloat16=partial(use_bfloat16, config.precision, layer),
        threads=resources.threads,
        seed=config.seed,
    )


def make_network(
    network: TransformerConfig, config: TrainTransformerConfig, compile_for: str | None
) -> Transformer:
    model = config.new_network(network)
    if compile_for is not None:
        compile_modules(model.blocks, compile_for)
    return model


def make_decoder(model: Transformer) -> NextLogits:
    return without_compilation(CachedDecoder(model))  # every new length would be compiled again


def make_transformer_optimizer(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    assert isinstance(model, Transformer)
    return make_optimizer(model, model.hidden_matrices(), config)


def add_token_metrics(metrics: dict[str, Any], windows: Artifact, context: int) -> dict[str, Any]:
    """Add tokens per second, perplexity and bits per byte to the metrics, before the curves."""
    figures: dict[str, Any] = {"tokens_per_second": metrics["examples_per_second"] * context}
    if "validation_loss" in metrics:
        loss, facts = metrics["validation_loss"], windows.summary.facts
        bits = loss * facts["validation_windows"] * context / math.log(2)
        figures |= {"perplexity": math.exp(loss), "bits_per_byte": bits / facts["validation_predicted_bytes"]}
    return {**select_facts(metrics), **figures, **metrics}


def model_card(
    network: TransformerConfig,
    parameters: int,
    metrics: dict[str, Any],
    rules: Sequence[str] = (),
    init_from: str | None = None,
) -> str:
    """Return the model card: what the model is, how it was trained, how to use it.

    `rules` are those of the training text's normalization that transformers does not apply.
    """
    architecture = {"gpt2": "GPT-2"}.get(network.architecture, network.architecture.capitalize())
    continued = f"Training continued {init_from}.\n" if init_from else ""
    score = ""
    if "validation_loss" in metrics:
        score = (
            f"On held-out text: perplexity {metrics['perplexity']:.2f} per token,"
            f" {metrics['bits_per_byte']:.3f} bits per byte.\n"
        )
    return f"""# A transformer language model

{parameters:,} parameters: {network.layers} blocks of width {network.width} with {network.heads} heads,
context {network.context}, vocabulary {network.vocabulary:,}; the architecture is {architecture}'s.
{continued}{describe_training(metrics, "windows")}
{score}
| file | content |
|---|---|
| `model.safetensors`, `config.json` | weights and shape, as transformers reads them |
| `tokenizer.json`, `tokenizer_config.json` | the tokenizer, as transformers reads it |
| `generation_config.json` | special tokens, and the largest length of a text, for transformers |
| `lexloom.json`, `tokenizer/` | shape and tokenizer, as Lexloom reads them |
| `metrics.json` | metrics of the training |

{GENERATE}
transformers computes the same ids, logits and greedy text:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

folder = "this folder"
pipeline("text-generation", folder)("The ")
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
```

transformers stops at {network.context} tokens, including the prompt. Lexloom continues: whenever the context
is full, it drops the older half.
{card_note(rules)}"""
