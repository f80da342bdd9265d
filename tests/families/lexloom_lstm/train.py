"""The training stage of the LSTM language model."""

from functools import partial
from pathlib import Path

from lexloom_lstm.model import LSTM, next_token_loss, save
from pydantic import Field
from torch import nn
from torch.optim import AdamW

from lexloom.models.language_model import causal_decoder
from lexloom.tasks.generate_samples import sample_in_training
from lexloom.tasks.store.artifacts import Artifact, Summary, canonical
from lexloom.tasks.store.stage import stage
from lexloom.tasks.subwords import TOKENIZER, read_tokenizer
from lexloom.tasks.train.outputs import GENERATE, describe_training, restore, save_records, summarize
from lexloom.tasks.train.run import BatchSize, GradientTrainConfig, plan_job, run_job
from lexloom.training.schedules import linear
from lexloom.training.torch_trainable import TorchTrainable


class TrainLSTMConfig(GradientTrainConfig):
    batch_size: BatchSize = 32
    context: int = Field(64, ge=1, description="Context length in tokens.")
    width: int = Field(128, ge=1, description="Size of the embeddings and hidden states.")
    depth: int = Field(1, ge=1, description="Number of LSTM layers.")
    learning_rate: float = Field(0.005, gt=0, description="Highest learning rate of AdamW.")


@stage(version=1)
def train_lstm_lm(
    windows: Artifact, tokens: Artifact, config: TrainLSTMConfig, out: Path, scratch: Path
) -> Summary:
    """Train on windows of context + 1 tokens and write the model folder."""
    tokenizer = read_tokenizer(tokens)
    make_network = partial(LSTM, tokenizer.size, config.width, config.depth)
    resources = config.resources()
    make_trainable = partial(
        TorchTrainable,
        make_network,
        next_token_loss,
        partial(make_optimizer, config.learning_rate),
        schedule=partial(linear, warm_up=0.02),
        clip=1.0,
        threads=resources.threads,
        seed=config.seed,
    )
    sample = partial(sample_in_training, tokens.folder / TOKENIZER, causal_decoder)
    job = plan_job(
        config,
        resources,
        make_trainable,
        windows,
        columns=("inputs", "label"),
        others=[tokens],
        scratch=scratch,
        sync=config.synchronisation(),
        sample=sample,
    )
    metrics, tensors = run_job(job, resources, unit="windows")
    network = restore(make_network(), tensors)
    save(network, out, {**canonical(config), **tokens.normalization})
    card = f"# LSTM language model\n\n{describe_training(metrics, 'windows')}\n\n{GENERATE}"
    save_records(out, metrics, card, tokenizer)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return summarize(metrics, "windows", parameters, "parameters")


def make_optimizer(learning_rate: float, network: nn.Module) -> AdamW:
    return AdamW(network.parameters(), lr=learning_rate)
