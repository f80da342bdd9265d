"""A transformer language model, top-down: attention, feed-forward, block, model, generation.

The network has two styles. "modern" is the architecture of Qwen3: RMSNorm, rotary position embeddings,
queries and keys normalized per head, a gated feed-forward, no biases, and optional grouped-query attention.
With other options it is that of Qwen2 or Llama. "gpt2" is the architecture of GPT-2: LayerNorm, learned
positions, GELU, biases. `models/transformer/hf_io.py` saves each so that `transformers` can load it.

Blocks are pre-norm. The output matrices of attention and feed-forward start at zero, so every block starts as
the identity. A batch's logits are never all in memory (models/layers/cross_entropy.py).

Vaswani et al. 2017, "Attention Is All You Need"; Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners"; Su et al. 2021, "RoFormer"; Zhang and Sennrich 2019, "Root Mean Square Layer
Normalization"; Shazeer 2020, "GLU Variants Improve Transformer"; Henry et al. 2020, "Query-Key
Normalization"; Ainslie et al. 2023, "GQA".

Shapes:  B texts   T tokens per text   S tokens that are attended to (T, and those in the cache)
         C width   H heads   K key/value heads   D width of a head (C / H)   F width of the feed-forward
         V vocabulary
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexloom.models.layers.cross_entropy import linear_cross_entropy
from lexloom.models.layers.rms_norm import RMSNorm
from lexloom.models.sampling import Sampling, sample_tokens
from lexloom.models.transformer.config import TransformerConfig

CACHE_TOKENS = 256  # initial size of a KV cache, which grows by doubling


def make_norm(config: TransformerConfig, width: int) -> nn.Module:
    return (RMSNorm if config.modern else nn.LayerNorm)(width, config.norm_epsilon)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + D/2]) by its position's i-th angle; `sin` is negative for i < D/2."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)  # mixed-dtype products are slow
    return x * cos + x.roll(x.size(-1) // 2, dims=-1) * sin  # (B, T, heads, D)


class KVCache:
    """One layer's keys and values of earlier tokens."""

    def __init__(self, texts: int, config: TransformerConfig, like: Tensor) -> None:
        shape = (texts, config.kv_heads, min(config.context, CACHE_TOKENS), config.head_width)
        self._keys, self._values = like.new_empty(shape), like.new_empty(shape)
        self._filled = 0
        self._context = config.context

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values of the next tokens, (B, K, T, D) each; return all, (B, K, S, D) each."""
        start, self._filled = self._filled, self._filled + keys.size(2)
        if self._filled > self._keys.size(2):
            size = min(self._context, max(self._filled, 2 * self._keys.size(2)))
            self._keys, self._values = (
                F.pad(part, (0, 0, 0, size - part.size(2))) for part in (self._keys, self._values)
            )
        self._keys[:, :, start : self._filled] = keys
        self._values[:, :, start : self._filled] = values
        return self._keys[:, :, : self._filled], self._values[:, :, : self._filled]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Return softmax(query keyᵀ / √D) value: (B, H, T, D), (B, K, S, D), (B, K, S, D) -> (B, H, T, D).

    Without a mask, a single query attends to all keys, and several queries attend causally.
    """
    dtype = value.dtype
    # on CPUs bfloat16 takes more than twice as long as float32, mainly in the backward pass (torch 2.13)
    if query.is_cpu:
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast("cpu", enabled=False):
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None and query.size(2) > 1,
            enable_gqa=key.size(1) != query.size(1),
        )
    return attended.to(dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention with optional grouped-query heads."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        heads, kv_heads = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = nn.Linear(config.width, heads, bias=config.qkv_bias)
        self.key = nn.Linear(config.width, kv_heads, bias=config.qkv_bias)
        self.value = nn.Linear(config.width, kv_heads, bias=config.qkv_bias)
        self.output = nn.Linear(heads, config.width, bias=config.output_bias)
        if config.qk_norm:
            self.query_norm = make_norm(config, config.head_width)
            self.key_norm = make_norm(config, config.head_width)

    def forward(
        self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:  # (B, T, C) -> (B, T, C)
        config = self.config
        query = self.query(x).unflatten(-1, (config.heads, config.head_width))  # (B, T, H, D)
        key = self.key(x).unflatten(-1, (config.kv_heads, config.head_width))  # (B, T, K, D)
        value = self.value(x).unflatten(-1, (config.kv_heads, config.head_width))  # (B, T, K, D)
        if config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if cos_sin is not None:
            query, key = apply_rotary(query, *cos_sin), apply_rotary(key, *cos_sin)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # (B, H or K, T, D)
        if cache is not None:
            key, value = cache.append(key, value)  # (B, K, S, D)
        attended = attend(query, key, value, mask, config.dropout if self.training else 0.0)  # (B, H, T, D)
        return self.output(attended.transpose(1, 2).flatten(2))  # (B, T, C)


class FeedForward(nn.Module):
    """A position-wise feed-forward network with one hidden layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        bias = not config.modern
        self.gate = nn.Linear(config.width, config.ffn_dim, bias=False) if config.modern else None
        self.up = nn.Linear(config.width, config.ffn_dim, bias=bias)
        self.down = nn.Linear(config.ffn_dim, config.width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        if self.gate is None:
            hidden = F.gelu(self.up(x), approximate="tanh")  # (B, T, F)
        else:
            hidden = F.silu(self.gate(x)) * self.up(x)  # (B, T, F)
        return self.down(hidden)


class Block(nn.Module):
    """A pre-norm transformer block: attention, then feed-forward, with residual connections."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, config.width)
        self.attention = Attention(config)
        self.feed_forward_norm = make_norm(config, config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:  # (B, T, C) -> (B, T, C)
        x = x + self.dropout(self.attention(self.attention_norm(x), cos_sin, mask, cache))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Transformer(nn.Module):
    """A decoder-only transformer language model."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        if not config.modern:
            self.position = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = make_norm(config, config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        angles = torch.outer(torch.arange(config.context), config.rotary_frequencies())  # (context, D/2)
        self.register_buffer("cos", torch.cat((angles.cos(), angles.cos()), 1), persistent=False)
        self.register_buffer("sin", torch.cat((-angles.sin(), angles.sin()), 1), persistent=False)
        self.cos: Tensor  # (context, D)
        self.sin: Tensor  # (context, D)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initialize matrices to preserve the norm of activations; branch outputs and the head to zero."""
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
        # a tied embedding also computes the logits, which should start small
        nn.init.normal_(self.embedding.weight, std=0.02 if self.config.tie_embeddings else 1.0)
        if not self.config.modern:
            nn.init.normal_(self.position.weight, std=0.02)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The blocks' matrices, which Muon trains; without embeddings, head, norms and biases."""
        return [parameter for parameter in self.blocks.parameters() if parameter.ndim == 2]

    def flops_per_token(self) -> float:
        """FLOPs per token in training with full contexts. (Chowdhery et al. 2022, "PaLM", appendix B)"""
        config = self.config
        matrices = sum(parameter.numel() for parameter in self.hidden_matrices()) + self.head.weight.numel()
        return 6 * matrices + 12 * config.layers * config.width * config.context

    def features(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        caches: Sequence[KVCache] | None = None,
    ) -> Tensor:
        """Compute the input of the head: (B, T) ids -> (B, T, C).

        `positions`, (B, T), default to 0 .. T - 1. `mask`, (B, 1, T, S), is true where a token may attend; by
        default attention is causal. `caches` are the layers' keys and values of earlier tokens.
        """
        if tokens.size(1) > self.config.context:
            raise ValueError(f"{tokens.size(1)} tokens exceed the context of {self.config.context}")
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
            x = block(x, cos_sin, mask, None if caches is None else caches[layer])
        return self.final_norm(x)

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, T) ids -> (B, T, V) logits of the next tokens; with (B, T) labels, their mean cross-entropy."""
        x = self.features(tokens)  # (B, T, C)
        if labels is None:
            return self.head(x)
        return linear_cross_entropy(x.flatten(0, 1), self.head.weight, labels.flatten()) / labels.numel()

    @torch.inference_mode()
    def next_logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """(B, V) float32 logits of the token after each text, which must not be empty.

        Of a text that exceeds the context only the end is read (see `window_start`).
        """
        return CachedDecoder(self)(texts)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | None = None
    ) -> Iterator[list[int | None]]:
        """Continue prompts: yield a token for each at a time, None for one that is finished."""
        return sample_tokens(CachedDecoder(self), prompts, sampling or Sampling(), self.config.end_of_text)


def next_token_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean loss over windows of T + 1 tokens: `inputs`, (B, T), and `label`, (B,), the last token."""
    tokens = torch.cat((batch["inputs"], batch["label"][:, None]), dim=1)  # (B, T + 1)
    loss: Tensor = model(tokens[:, :-1], tokens[:, 1:])
    return loss


def window_start(length: int, context: int) -> int:
    """Return the first token of a text that is read: whenever the context is full, half of it is dropped.

    It only depends on the length, so that generation token by token gives the same result as reading a whole
    text.
    """
    step = (context + 1) // 2
    return max(0, -(-(length - context) // step)) * step


class CachedDecoder:
    """Logits of the next token of texts that grow by one token per call.

    Keys and values of earlier tokens are cached, so that only new tokens go through the model. Texts are
    left-padded.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self._caches: list[KVCache] | None = None
        self._lengths: list[int] = []  # of the texts at the last call
        self._starts: list[int] = []  # the first token of each that is in the cache

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Return (B, V) float32 logits. Raises ValueError for an empty text."""
        config = self.model.config
        if not all(texts):
            raise ValueError("a text is empty: pass at least one token")
        lengths = [len(text) for text in texts]
        starts = [window_start(length, config.context) for length in lengths]
        grown = [length + 1 for length in self._lengths]
        if self._caches is None or lengths != grown or starts != self._starts:
            weight = self.model.head.weight
            self._caches = [KVCache(len(texts), config, weight) for _ in self.model.blocks]
            new = max(length - start for length, start in zip(lengths, starts, strict=True))
        else:
            new = 1
        self._lengths, self._starts = lengths, starts
        was_training = self.model.training
        if was_training:  # eval() visits all modules, which takes time for each token
            self.model.eval()
        logits = self._read(texts, new)
        if was_training:
            self.model.train()
        return logits

    def _read(self, texts: Sequence[Sequence[int]], new: int) -> Tensor:
        """Read the last `new` tokens of each text, left-padded."""
        device = self.model.head.weight.device
        rows = [text[start:] for text, start in zip(texts, self._starts, strict=True)]
        all_columns = max(map(len, rows))  # S
        padding = torch.tensor([all_columns - len(row) for row in rows], device=device)[:, None]  # (B, 1)
        tokens = torch.tensor([([0] * new + list(row))[-new:] for row in rows], device=device)  # (B, T)
        columns = torch.arange(all_columns - new, all_columns, device=device)  # (T,)
        positions = (columns - padding).clamp(min=0)  # (B, T)
        mask = None
        if padding.any():
            key_positions = torch.arange(all_columns, device=device)  # (S,)
            itself = key_positions == columns[:, None]  # (T, S): padding must attend to something
            text = (key_positions <= columns[:, None]) & (key_positions >= padding[:, :, None])  # (B, T, S)
            mask = (text | itself)[:, None]  # (B, 1, T, S)
        x = self.model.features(tokens, positions, mask, self._caches)  # (B, T, C)
        return self.model.head(x[:, -1]).float()  # (B, V)
