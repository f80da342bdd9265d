"""The hyperparameters of a transformer, and the architectures that they describe."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

RMS_EPSILON, LAYER_EPSILON = 1e-6, 1e-5  # of Qwen3 and GPT-2
ROUND_TO = 16  # so that rows fill vector registers

Style = Literal["modern", "gpt2"]
Architecture = Literal["qwen3", "qwen2", "llama", "gpt2"]


@dataclass(frozen=True)
class TransformerConfig:
    """The architecture's hyperparameters.

    Attributes:
        vocabulary: V, at least the tokenizer's number of ids.
        context: the maximum T.
        layers, width, heads: number of blocks, C, H.
        kv_heads: K, a divisor of H; 0 for H.
        ffn_dim: F; 0 for 4 C, or, if gated, for the same number of parameters (8/3 C, a multiple of 16).
        style: "modern" (Qwen3's architecture, or with other options Qwen2's or Llama's) or "gpt2".
        tie_embeddings: use the token embedding matrix as the output projection.
        dropout: dropout rate of embeddings, attention weights, and attention and feed-forward outputs.
        rope_base: base of the rotary frequencies; the lowest is about 1 / rope_base (modern).
        end_of_text: id of the end-of-text token, for tools that read the model's folder.
        head_width: D; 0 for C / H, which GPT-2 requires.
        qk_norm: normalize queries and keys (modern).
        qkv_bias, output_bias: whether these projections of attention have biases; GPT-2's always do.
        norm_epsilon: added to the variance in norms; 0 for the style's default.
        rope_scaling: lower the low rotary frequencies as Llama 3.1 does, for longer contexts: its factor,
            low_freq_factor, high_freq_factor and original_max_position_embeddings.

    Raises:
        ValueError: a number is out of range, or numbers are inconsistent.
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
    head_width: int = 0
    qk_norm: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    norm_epsilon: float = 0.0
    rope_scaling: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        for name, least in (("vocabulary", 1), ("context", 1), ("layers", 1), ("width", 1), ("heads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.style not in ("modern", "gpt2"):
            raise ValueError(f"style is {self.style!r}: it must be 'modern' or 'gpt2'")
        if self.width % self.heads and not self.head_width:
            raise ValueError(f"width is {self.width}: it must be a multiple of heads, {self.heads}")
        modern = self.style == "modern"
        gated = max(1, self.width * 8 // 3 // ROUND_TO) * ROUND_TO
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "ffn_dim", self.ffn_dim or (gated if modern else 4 * self.width))
        object.__setattr__(self, "head_width", self.head_width or self.width // self.heads)
        epsilon = self.norm_epsilon or (RMS_EPSILON if modern else LAYER_EPSILON)
        object.__setattr__(self, "norm_epsilon", epsilon)
        if self.rope_scaling is not None:
            object.__setattr__(self, "rope_scaling", tuple(self.rope_scaling))  # JSON has lists
        if not modern:
            for name, value in (("qk_norm", False), ("qkv_bias", True), ("output_bias", True)):
                object.__setattr__(self, name, value)
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"kv_heads is {self.kv_heads}: it must be a divisor of heads, {self.heads}")
        if self.ffn_dim < 1:
            raise ValueError(f"ffn_dim is {self.ffn_dim}: it must be at least 1")
        if modern and self.head_width % 2:
            raise ValueError(
                f"rotary embeddings need an even width per head: width / heads is {self.head_width}"
            )
        if not modern and self.head_width * self.heads != self.width:
            raise ValueError(f"head_width is {self.head_width}: GPT-2 needs {self.width // self.heads}")
        if self.qk_norm and self.qkv_bias != self.output_bias:
            raise ValueError("Qwen3's attention has biases in all layers or in none: set both, or neither")
        if not modern and self.kv_heads != self.heads:
            raise ValueError("GPT-2 does not support grouped-query attention: omit kv_heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be at least 0 and below 1")
        if not self.rope_base > 1:
            raise ValueError(f"rope_base is {self.rope_base}: it must be above 1")

    @property
    def modern(self) -> bool:
        return self.style == "modern"

    @property
    def architecture(self) -> Architecture:
        """The architecture in transformers."""
        if not self.modern:
            return "gpt2"
        if self.qk_norm:
            return "qwen3"
        return "qwen2" if self.qkv_bias and not self.output_bias else "llama"

    def rotary_frequencies(self) -> Tensor:
        """Return the (D/2,) rotary frequencies: the angles by which queries and keys rotate per position.

        With `rope_scaling`, wavelengths above original positions / low_freq_factor are multiplied by the
        factor, those below original positions / high_freq_factor are kept, and those in between are
        interpolated.
        """
        share = torch.arange(0, self.head_width, 2) / self.head_width  # (D/2,)
        frequencies = self.rope_base**-share  # (D/2,)
        if self.rope_scaling is None:
            return frequencies
        factor, low, high, positions = self.rope_scaling
        turns = positions * frequencies / (2 * torch.pi)  # within the original positions
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / factor)
