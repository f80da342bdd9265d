"""A transformer language model, to be read from the top: configuration, attention, feed-forward, block,
model, generation.

Two styles of one network. "modern" is today's, Qwen3's architecture: RMSNorm, rotary positions, queries and
keys normalised per head, a gated feed-forward, no biases, key/value heads that query heads may share. "gpt2"
is the textbook's: LayerNorm, learned positions, GELU, biases. `models/transformer/hf_io.py` writes either so
that `transformers` loads it.

- Each block adds to the residual stream what its attention and its feed-forward make of it, normalised first.
  Their last matrices are zero at the start, so every block begins as the identity.
- Logits of a whole batch are never held (models/layers/cross_entropy.py).
- Generation reads each token once and keeps its keys and values (`CachedDecoder`).

Vaswani et al. 2017, "Attention Is All You Need"; Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners"; Su et al. 2021, "RoFormer"; Zhang and Sennrich 2019, "Root Mean Square Layer
Normalization"; Shazeer 2020, "GLU Variants Improve Transformer"; Henry et al. 2020, "Query-Key
Normalization"; Ainslie et al. 2023, "GQA".

Shapes:  B texts   T tokens of each   S tokens that attention looks back on (T, and those in the cache)
         C width   H heads   K key/value heads   D = C / H width of a head   F width inside the feed-forward
         V vocabulary
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexloom.models.layers.cross_entropy import linear_cross_entropy
from lexloom.models.layers.rms_norm import RMSNorm
from lexloom.models.sampling import Sampling, sample_tokens

RMS_EPSILON, LAYER_EPSILON = 1e-6, 1e-5  # Qwen3's and GPT-2's
ROUND_TO = 16  # widths of whole vector registers

Style = Literal["modern", "gpt2"]


@dataclass(frozen=True)
class TransformerConfig:
    """The network's shape.

    Attributes:
        vocabulary: V; more than the tokenizer's ids does no harm.
        context: the largest T.
        layers, width, heads: number of blocks, C, H.
        kv_heads: K, a divisor of H; 0 stands for H.
        hidden: F; 0 stands for 4 C, or for what makes a gated feed-forward as large: 8/3 C, rounded down to a
            multiple of 16.
        style: see above.
        tied: one table for the tokens going in and coming out.
        dropout: share of activations dropped in training: of embeddings, attention's weights, and what each
            half of a block adds.
        rope_base: the slowest rotary frequency is about 1 / rope_base (modern).
        end_of_text: id of the token that ends a text, for tools that read the model's folder.

    Raises:
        ValueError: numbers that are out of range or do not fit each other.
    """

    vocabulary: int
    context: int = 256
    layers: int = 6
    width: int = 384
    heads: int = 6
    kv_heads: int = 0
    ffn_dim: int = 0
    style: Style = "modern"
    tie_embeddings: bool = False
    dropout: float = 0.0
    rope_base: float = 10_000.0
    end_of_text: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("vocabulary", 1), ("context", 1), ("layers", 1), ("width", 1), ("heads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.style not in ("modern", "gpt2"):
            raise ValueError(f"style is {self.style!r}: it must be 'modern' or 'gpt2'")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads can't share a width of {self.width}: make it a multiple")
        modern = self.style == "modern"
        gated = max(1, self.width * 8 // 3 // ROUND_TO) * ROUND_TO
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "ffn_dim", self.ffn_dim or (gated if modern else 4 * self.width))
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads can't share {self.kv_heads} kv_heads: make it a divisor")
        if self.ffn_dim < 1:
            raise ValueError(f"ffn_dim is {self.ffn_dim}: it must be at least 1")
        if modern and self.head_width % 2:
            raise ValueError(
                f"rotary positions cos_sin pairs: a head's width, {self.head_width}, must be even"
            )
        if not modern and self.kv_heads != self.heads:
            raise ValueError("GPT-2's heads do not share keys and values: leave kv_heads out")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        if not self.rope_base > 1:
            raise ValueError(f"rope_base is {self.rope_base}: it must be above 1")

    @property
    def modern(self) -> bool:
        return self.style == "modern"

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def norm(config: TransformerConfig, width: int) -> nn.Module:
    return RMSNorm(width, RMS_EPSILON) if config.modern else nn.LayerNorm(width, LAYER_EPSILON)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x[i], x[i + D/2]) by its token's angle number i; `sin` is negative for i < D/2."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)  # products of two types are slow
    return x * cos + x.roll(x.size(-1) // 2, dims=-1) * sin  # (B, T, heads, D)


class KVCache:
    """One layer's keys and values of the tokens read so far."""

    def __init__(self, texts: int, config: TransformerConfig, like: Tensor) -> None:
        shape = (texts, config.kv_heads, config.context, config.head_width)
        self._keys, self._values = like.new_empty(shape), like.new_empty(shape)
        self._filled = 0

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, T, D) each of the next tokens -> (B, K, S, D) of all."""
        start, self._filled = self._filled, self._filled + keys.size(2)
        self._keys[:, :, start : self._filled] = keys
        self._values[:, :, start : self._filled] = values
        return self._keys[:, :, : self._filled], self._values[:, :, : self._filled]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(query keyᵀ / √D) value: (B, H, T, D), (B, K, S, D), (B, K, S, D) -> (B, H, T, D).

    Without a mask, a single query looks at all keys, and several at those up to themselves.
    """
    wanted = value.dtype
    # on a processor bfloat16 takes more than twice as long as float32, most of it backward (torch 2.13)
    if query.is_cpu:
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None and query.size(2) > 1,
            enable_gqa=key.size(1) != query.size(1),
        )
    return mixed.to(wanted)


class Attention(nn.Module):
    """Every token takes from the tokens up to itself a mean of their values, weighted by how well their keys
    meet its query; in H heads, each with queries, keys and values of its own."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        heads, kv_heads = config.heads * config.head_width, config.kv_heads * config.head_width
        biased = not config.modern
        self.query = nn.Linear(config.width, heads, bias=biased)
        self.key = nn.Linear(config.width, kv_heads, bias=biased)
        self.value = nn.Linear(config.width, kv_heads, bias=biased)
        self.output = nn.Linear(heads, config.width, bias=biased)
        if config.modern:
            self.query_norm, self.key_norm = norm(config, config.head_width), norm(config, config.head_width)

    def forward(
        self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, mask: Tensor | None, past: KVCache | None
    ) -> Tensor:  # (B, T, C) -> (B, T, C)
        config = self.config
        query = self.query(x).unflatten(-1, (config.heads, config.head_width))  # (B, T, H, D)
        key = self.key(x).unflatten(-1, (config.kv_heads, config.head_width))  # (B, T, K, D)
        value = self.value(x).unflatten(-1, (config.kv_heads, config.head_width))  # (B, T, K, D)
        if cos_sin is not None:
            query, key = rotate(self.query_norm(query), *cos_sin), rotate(self.key_norm(key), *cos_sin)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # (B, H or K, T, D)
        if past is not None:
            key, value = past.add(key, value)  # (B, K, S, D)
        mixed = attend(query, key, value, mask, config.dropout if self.training else 0.0)  # (B, H, T, D)
        return self.output(mixed.transpose(1, 2).flatten(2))  # (B, T, C)


class FeedForward(nn.Module):
    """A network with one hidden layer, for each token by itself."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        biased = not config.modern
        self.gate = nn.Linear(config.width, config.ffn_dim, bias=False) if config.modern else None
        self.up = nn.Linear(config.width, config.ffn_dim, bias=biased)
        self.down = nn.Linear(config.ffn_dim, config.width, bias=biased)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        if self.gate is None:
            hidden = F.gelu(self.up(x), approximate="tanh")  # (B, T, F)
        else:
            hidden = F.silu(self.gate(x)) * self.up(x)  # (B, T, F)
        return self.down(hidden)


class Block(nn.Module):
    """Attention, then feed-forward; each adds to what it was given."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = norm(config, config.width)
        self.attention = Attention(config)
        self.feed_forward_norm = norm(config, config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, mask: Tensor | None, past: KVCache | None
    ) -> Tensor:  # (B, T, C) -> (B, T, C)
        x = x + self.dropout(self.attention(self.attention_norm(x), cos_sin, mask, past))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Transformer(nn.Module):
    """Predicts every token of a text from the tokens before it."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        if not config.modern:
            self.position = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = norm(config, config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        share = torch.arange(0, config.head_width, 2) / config.head_width  # (D/2,)
        frequencies = config.rope_base**-share  # (D/2,)
        angles = torch.outer(torch.arange(config.context), frequencies)  # (context, D/2)
        self.register_buffer("cos", torch.cat((angles.cos(), angles.cos()), 1), persistent=False)
        self.register_buffer("sin", torch.cat((-angles.sin(), angles.sin()), 1), persistent=False)
        self.cos: Tensor  # (context, D)
        self.sin: Tensor  # (context, D)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Matrices keep the size of what they multiply; those that end a branch, and the head, are zero."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=part.in_features**-0.5)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.attention.output.weight)
            nn.init.zeros_(block.feed_forward.down.weight)
        if not self.config.tie_embeddings:
            nn.init.zeros_(self.head.weight)
        # tied, the table makes the logits too, which should begin small
        nn.init.normal_(self.embedding.weight, std=0.02 if self.config.tie_embeddings else 1.0)
        if not self.config.modern:
            nn.init.normal_(self.position.weight, std=0.02)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The blocks' matrices, for an optimizer of matrices; not embeddings, head, norms and biases."""
        return [parameter for parameter in self.blocks.parameters() if parameter.ndim == 2]

    def flops_per_token(self) -> float:
        """Of training, forward and backward, on full contexts. (Chowdhery et al. 2022, "PaLM", appendix B)"""
        config = self.config
        matrices = sum(parameter.numel() for parameter in self.hidden_matrices()) + self.head.weight.numel()
        return 6 * matrices + 12 * config.layers * config.width * config.context

    def features(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        past: Sequence[KVCache] | None = None,
    ) -> Tensor:
        """What the head makes logits of: (B, T) ids -> (B, T, C).

        `positions`, (B, T), are 0 to T - 1 if not given. `mask`, (B, 1, T, S), is true where a token may
        look; if not given, each looks at those up to itself. `past` holds the layers' keys and values of
        earlier tokens.
        """
        if tokens.size(1) > self.config.context:
            raise ValueError(f"{tokens.size(1)} tokens are longer than the context of {self.config.context}")
        if positions is None:
            positions = torch.arange(tokens.size(1), device=tokens.device)  # (T,)
        x = self.embedding(tokens)  # (B, T, C)
        cos_sin = None
        if self.config.modern:
            cos_sin = (
                self.cos[positions].unsqueeze(-2),
                self.sin[positions].unsqueeze(-2),
            )  # (B or 1, T, 1, D)
        else:
            x = x + self.position(positions)
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, cos_sin, mask, None if past is None else past[layer])
        return self.final_norm(x)

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, T) ids -> (B, T, V) logits of each next token; or, given the (B, T) labels, their mean loss."""
        x = self.features(tokens)  # (B, T, C)
        if labels is None:
            return self.head(x)
        return linear_cross_entropy(x.flatten(0, 1), self.head.weight, labels.flatten()) / labels.numel()

    @torch.inference_mode()
    def next_logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """(B, V) float32 logits of the token after each text, which has one token at least.

        Of a text that is longer than the context only the end is read (see `first_read`).
        """
        return CachedDecoder(self)(texts)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | None = None
    ) -> Iterator[list[int | None]]:
        """Goes on from some texts: gives out one token for each, or None for one that is over, at a time."""
        return sample_tokens(CachedDecoder(self), prompts, sampling or Sampling(), self.config.end_of_text)


def next_token_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean loss of windows of T + 1 tokens: `inputs`, (B, T), and `label`, (B,), the last of them."""
    tokens = torch.cat((batch["inputs"], batch["label"][:, None]), dim=1)  # (B, T + 1)
    loss: Tensor = model(tokens[:, :-1], tokens[:, 1:])
    return loss


def first_read(length: int, context: int) -> int:
    """The first token that is read of a text: with each context that is full, half a context is forgotten.

    A function of the length alone, so that a text read token by token is read like one that comes whole.
    """
    step = (context + 1) // 2
    return max(0, -(-(length - context) // step)) * step


class CachedDecoder:
    """Logits of the tokens after some texts, which are called for again and again as each grows by a token.

    What was read is remembered: only the new tokens go through the model. Texts are aligned at their ends.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self._past: list[KVCache] | None = None
        self._lengths: list[int] = []  # of the texts at the last call
        self._starts: list[int] = []  # the first token read of each

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """(B, V) float32 logits. Raises ValueError for an empty text."""
        config = self.model.config
        if not all(texts):
            raise ValueError("there is nothing to go on from: give at least one token")
        lengths = [len(text) for text in texts]
        starts = [first_read(length, config.context) for length in lengths]
        grown = [length + 1 for length in self._lengths]
        if self._past is None or lengths != grown or starts != self._starts:
            weight = self.model.head.weight
            self._past = [KVCache(len(texts), config, weight) for _ in self.model.blocks]
            new = max(length - start for length, start in zip(lengths, starts, strict=True))
        else:
            new = 1
        self._lengths, self._starts = lengths, starts
        was_training = self.model.training
        if was_training:  # else a walk through all modules for nothing, at each token
            self.model.eval()
        logits = self._read(texts, new)
        if was_training:
            self.model.train()
        return logits

    def _read(self, texts: Sequence[Sequence[int]], new: int) -> Tensor:
        """Reads the last `new` tokens of each text; those that have fewer are filled up on the left."""
        device = self.model.head.weight.device
        rows = [text[start:] for text, start in zip(texts, self._starts, strict=True)]
        all_columns = max(map(len, rows))  # S
        padding = torch.tensor([all_columns - len(row) for row in rows], device=device)[:, None]  # (B, 1)
        tokens = torch.tensor([([0] * new + list(row))[-new:] for row in rows], device=device)  # (B, T)
        columns = torch.arange(all_columns - new, all_columns, device=device)  # (T,)
        positions = (columns - padding).clamp(min=0)  # (B, T)
        mask = None
        if padding.any():
            looks = torch.arange(all_columns, device=device)  # (S,)
            itself = looks == columns[:, None]  # (T, S): a filler has nothing else to look at
            text = (looks <= columns[:, None]) & (looks >= padding[:, :, None])  # (B, T, S)
            mask = (text | itself)[:, None]  # (B, 1, T, S)
        x = self.model.features(tokens, positions, mask, self._past)  # (B, T, C)
        return self.model.head(x[:, -1]).float()  # (B, V)
