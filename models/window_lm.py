"""A window language model: a dense network that predicts a label from the N - 1 preceding tokens.

Bengio et al. (2003), "A Neural Probabilistic Language Model", with modern components: pre-computed
embeddings, which are looked up in the model and concatenated, residual dense layers with layer normalization,
and an adaptive softmax. There are two objectives:

    token       cross-entropy of the label; the output is a distribution over tokens
    embedding   regression to the label's embedding (squared or cosine error); the prediction is the token
    with the nearest embedding. There is no distribution, so no perplexity

Shapes: B windows, N - 1 tokens of context, dim floats per embedding, V tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexloom.models.language_model import TOKENIZER, LanguageModel
from lexloom.models.layers.softmax import AdaptiveSoftmax, FullSoftmax
from lexloom.models.model_folder import load_network, save_network
from lexloom.models.normalization import read_normalization
from lexloom.models.registry import ModelFamily
from lexloom.models.tokenizer.tokenizer import Tokenizer

FAMILY = ModelFamily(
    kind="window_lm",
    title="window language model",
    stage="train_window_lm",
    capability="generate",
)

Activation = Literal["relu", "gelu", "silu", "tanh"]
Objective = Literal["token", "embedding"]
Output = Literal["adaptive", "full", "tied"]
Error = Literal["squared", "cosine"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
MASK_VALUES = 256  # of the random byte that decides whether an entry is dropped


@dataclass(frozen=True)
class WindowLMConfig:
    """The architecture's hyperparameters.

    Attributes:
        vocabulary: V, the number of tokens; ids are ordered by frequency.
        context: N - 1, the number of input tokens.
        dim: floats per embedding.
        padding: the id that precedes the beginning of a text.
        width: of the dense layers.
        depth: number of dense layers, the first of which reads the embeddings.
        activation: of the dense layers.
        dropout: dropout rate of the dense layers' outputs, rounded to a multiple of 1/256.
        fine_tuned: whether the embeddings are trained too.
        objective: predict the label, or its embedding.
        output: for the objective "token": an adaptive softmax, a full one, or a full one whose weight is the
            embedding matrix ("tied").
        features: input features of the output layer; with "tied" or the objective "embedding" it is dim.
        cutoffs: ids at which the tails of the adaptive softmax begin; those beyond V are ignored.
        error: for the objective "embedding".

    Raises:
        ValueError: a number is out of range, a name is unknown, or two options exclude each other.
    """

    vocabulary: int
    context: int
    dim: int
    padding: int
    width: int = 512
    depth: int = 2
    activation: Activation = "relu"
    dropout: float = 0.1
    fine_tuned: bool = False
    objective: Objective = "token"
    output: Output = "adaptive"
    features: int = 128
    cutoffs: tuple[int, ...] = (2000, 10_000)
    error: Error = "cosine"

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "dim", "width", "depth", "features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name, known in (
            ("activation", get_args(Activation)),
            ("objective", get_args(Objective)),
            ("output", get_args(Output)),
            ("error", get_args(Error)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be one of {', '.join(known)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        if not 0 <= self.padding < self.vocabulary:
            raise ValueError(
                f"padding is {self.padding}: it must be below {self.vocabulary}, the vocabulary's size"
            )
        if sorted({0, *self.cutoffs}) != [0, *self.cutoffs]:
            raise ValueError(f"cutoffs are {list(self.cutoffs)}: they must be positive and increase")
        if self.objective == "embedding" and self.fine_tuned:
            raise ValueError(
                "embeddings that are the prediction target can't be trained, since they would collapse:"
                " keep them frozen, or use the objective 'token'"
            )


class WindowLM(nn.Module):
    """The network.

    Args:
        config: its hyperparameters.
        embeddings: (V, dim), for example from `scale_to_unit_rms`; random by default.
        counts: (V,) token counts; the initial predictions are these frequencies.

    Raises:
        ValueError: the embeddings or counts do not match the config.
    """

    embeddings: Tensor

    def __init__(
        self, config: WindowLMConfig, embeddings: Tensor | None = None, counts: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config
        size, dim = config.vocabulary, config.dim
        table = torch.randn(size, dim) if embeddings is None else embeddings.float()
        if table.shape != (size, dim):
            raise ValueError(
                f"the embeddings are {' x '.join(map(str, table.shape))}, but the model has {size:,} tokens"
                f" of {dim} floats"
            )
        if config.fine_tuned:
            self.embeddings = nn.Parameter(table)
        else:
            self.register_buffer("embeddings", table, persistent=False)  # not saved in checkpoints
        self.first = nn.Linear(config.context * dim, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth - 1))
        self.norm = nn.LayerNorm(config.width)
        regression = config.objective == "embedding"
        features = dim if regression or config.output == "tied" else config.features
        self.last = nn.Linear(config.width, features)
        self.softmax = None if regression else self._softmax(features, counts)

    def _softmax(self, features: int, counts: Tensor | None) -> AdaptiveSoftmax | FullSoftmax:
        config = self.config
        if counts is None:
            counts = torch.ones(config.vocabulary)
        if counts.shape != (config.vocabulary,):
            raise ValueError(f"there are {len(counts):,} counts for {config.vocabulary:,} tokens")
        probabilities = (counts + 0.5) / (counts + 0.5).sum()
        cutoffs = [cutoff for cutoff in config.cutoffs if cutoff < config.vocabulary]
        if config.output == "adaptive" and cutoffs:
            return AdaptiveSoftmax(features, probabilities.float(), cutoffs)
        tied_weight = self.embeddings if config.output == "tied" else None
        return FullSoftmax(features, probabilities.float(), tied_weight)

    def features(self, inputs: Tensor) -> Tensor:
        """Compute the input of the softmax, or the predicted embedding: (B, N - 1) -> (B, features)."""
        joined = F.embedding(inputs, self.embeddings).flatten(1)  # (B, (N - 1) dim)
        hidden = dropout(
            ACTIVATIONS[self.config.activation](self.first(joined)), self._dropout_rate
        )  # (B, width)
        for block in self.blocks:
            hidden = block(hidden)
        return cast(Tensor, self.last(self.norm(hidden)))

    @property
    def _dropout_rate(self) -> float:
        return self.config.dropout if self.training else 0.0

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss over windows (B, N - 1) with labels (B,).

        "token": the cross-entropy in nats. "embedding": the squared error, averaged over the floats, or 1 -
        cosine.
        """
        features, labels = self.features(inputs), labels.long()
        if self.softmax is not None:
            return self.softmax.loss(features, labels)
        found, wanted = features.float(), F.embedding(labels, self.embeddings)
        if self.config.error == "squared":
            return F.mse_loss(found, wanted)
        return 1 - F.cosine_similarity(found, wanted).mean()

    def best(self, inputs: Tensor, k: int) -> Tensor:
        """The k most probable (or nearest) tokens, (B, k), for windows (B, N - 1); best first."""
        features = self.features(inputs)
        if self.softmax is not None:
            return self.softmax.best(features, k)
        return self._similarities(features).topk(k).indices

    def log_probabilities(self, inputs: Tensor) -> Tensor:
        """(B, V), natural logarithms, for windows (B, N - 1).

        Raises:
            ValueError: the model predicts embeddings.
        """
        if self.softmax is None:
            raise ValueError("a model that predicts embeddings has no probabilities, only nearest tokens")
        return self.softmax.log_probabilities(self.features(inputs))

    def next_logits(self, ids: Tensor) -> Tensor:
        """Logits (B, V) of the token after texts (B, any length), which are padded on the left.

        They are log-probabilities, or similarities for the objective "embedding" (the negative squared
        distance, or the cosine), which rank tokens but are not calibrated for a temperature.
        """
        context = self.config.context
        inputs = F.pad(ids, (max(0, context - ids.shape[1]), 0), value=self.config.padding)[:, -context:]
        features = self.features(inputs)
        if self.softmax is not None:
            return self.softmax.log_probabilities(features)
        return self._similarities(features)

    def _similarities(self, features: Tensor) -> Tensor:
        """(B, V): larger is nearer."""
        if self.config.error == "cosine":
            return F.normalize(features) @ F.normalize(self.embeddings).T
        squares = self.embeddings.square().sum(1) + features.square().sum(1, keepdim=True)
        return 2 * features @ self.embeddings.T - squares

    # on disk

    def save(self, folder: Path, details: dict[str, Any] | None = None) -> None:
        """Write `model.safetensors` (with the embeddings) and `config.json` (with `details`)."""
        tensors = {**self.state_dict(), "embeddings": self.embeddings.detach()}
        if self.config.output == "tied":
            tensors.pop("softmax.weight", None)  # the embeddings, once more
        save_network(folder, FAMILY.kind, asdict(self.config), tensors, details or {})

    @classmethod
    def load(cls, folder: Path) -> "WindowLM":
        """Read what `save` wrote; raise the errors of `load_network`."""
        return load_network(folder, FAMILY.kind, cls._build)

    @classmethod
    def _build(cls, shape: dict[str, Any], tensors: dict[str, Tensor]) -> "WindowLM":
        config = WindowLMConfig(**{**shape, "cutoffs": tuple(shape["cutoffs"])})
        model = cls(config, tensors["embeddings"])
        found = model.load_state_dict(tensors, strict=False)
        missing = set(found.missing_keys) - ({"softmax.weight"} if config.output == "tied" else set())
        if wrong := missing | set(found.unexpected_keys) - {"embeddings"}:
            raise ValueError(f"the tensor {sorted(wrong)[0]} is missing or unexpected")
        return model


def scale_to_unit_rms(embeddings: Tensor) -> Tensor:
    """Divide embeddings by their root mean square, so that layers need not depend on their scale."""
    return embeddings / embeddings.square().mean().sqrt().clamp_min(torch.finfo(embeddings.dtype).tiny)


class Block(nn.Module):
    """hidden + dropout(activation(dense(norm(hidden)))), (B, width)."""

    def __init__(self, config: WindowLMConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.dense = nn.Linear(config.width, config.width)
        self._activation = ACTIVATIONS[config.activation]
        self._dropout = config.dropout

    def forward(self, hidden: Tensor) -> Tensor:
        update = self._activation(self.dense(self.norm(hidden)))
        return hidden + dropout(update, self._dropout if self.training else 0.0)


class ByteDropout(torch.autograd.Function):
    """Dropout with one random byte per entry: 5 times as fast as torch's on CPUs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, dropped: int) -> Tensor:
        words = torch.empty(-(-values.numel() // 8), dtype=torch.int64, device=values.device)
        random_bytes = words.random_(-(2**63), None).view(torch.uint8)[: values.numel()].view(values.shape)
        factor = (random_bytes >= dropped) * (MASK_VALUES / (MASK_VALUES - dropped))
        ctx.save_for_backward(factor)
        return values * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0], None


def dropout(values: Tensor, share: float) -> Tensor:
    """Zero a random share of the entries, rounded to a multiple of 1/256, and scale the others up."""
    dropped = round(share * MASK_VALUES)
    return cast(Tensor, ByteDropout.apply(values, dropped)) if dropped else values


def window_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of a batch of `inputs` (B, N - 1) and `label` (B,)."""
    assert isinstance(model, WindowLM)
    return model.loss(batch["inputs"], batch["label"])


# as a language model


class WindowDecoder:
    """Next-token logits of texts of any length: the model reads the last N - 1 tokens, padded on the left."""

    def __init__(self, model: WindowLM) -> None:
        self._model = model

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:  # (B, V)
        context, padding = self._model.config.context, self._model.config.padding
        ends = [list(text[-context:]) for text in texts]
        filled = [[padding] * (context - len(end)) + end for end in ends]
        device = self._model.embeddings.device
        return self._model.next_logits(torch.tensor(filled, dtype=torch.int32, device=device))


@torch.inference_mode()
def predict_labels(model: WindowLM, inputs: Tensor, labels: Tensor, k: int) -> tuple[float | None, Tensor]:
    """Predict the labels of windows; see `lexloom.models.language_model.Predict`."""
    nats = float(model.loss(inputs, labels)) * len(labels) if model.config.objective == "token" else None
    return nats, model.best(inputs, k)[:, None]


def load(folder: Path, device: str = "cpu") -> LanguageModel:
    """Load the language model in `folder`; raise the errors of `load_network`."""
    model = WindowLM.load(folder).to(device)
    return LanguageModel(
        Tokenizer.load(folder / TOKENIZER),
        read_normalization(folder),
        partial(WindowDecoder, model),
        partial(predict_labels, model),
        every_token=False,
        context=model.config.context,
        has_probabilities=model.softmax is not None,
    )
