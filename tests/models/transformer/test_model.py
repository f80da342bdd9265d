"""The transformer: equal to transformers' models; the KV cache against full forward passes."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lexloom.models.sampling import Sampling
from lexloom.models.transformer.hf_io import save
from lexloom.models.transformer.model import (
    CachedDecoder,
    Transformer,
    TransformerConfig,
    next_token_loss,
    window_start,
)

V, T = 31, 16
STYLES = [
    {"style": "modern"},
    {"style": "modern", "kv_heads": 2, "tie_embeddings": True, "rope_base": 500.0, "ffn_dim": 24},
    {"style": "gpt2", "tie_embeddings": True},
    {"style": "gpt2", "ffn_dim": 40},
]


def config(**changes: object) -> TransformerConfig:
    options = {"vocabulary": V, "context": T, "layers": 2, "width": 32, "heads": 4, **changes}
    return TransformerConfig(**options)  # type: ignore[arg-type]


def transformer(**changes: object) -> Transformer:
    """A model whose parameters all matter: none is zero or one, unlike after initialization."""
    torch.manual_seed(0)
    model = Transformer(config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(rows: int = 3, length: int = T) -> Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("style", STYLES)
def test_transformers_computes_the_same_logits(style: dict[str, object], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformer(**style)
    save(model, tmp_path)
    theirs, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values()), "transformers misses tensors, or knows no place for them"
    with torch.no_grad():
        assert torch.allclose(model(tokens()), theirs.eval()(tokens()).logits, atol=1e-4)


def test_transformers_generates_the_same_greedy_text(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformer()
    save(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs.generate(
            tokens(1, 5), attention_mask=torch.ones(1, 5), max_new_tokens=10, do_sample=False, pad_token_id=0
        )
    drawn = model.generate(tokens(1, 5).tolist(), Sampling(max_tokens=10, temperature=0))
    assert [token for (token,) in drawn] == expected[0, 5:].tolist()


def test_number_of_parameters_equals_the_papers() -> None:
    c, f, d = 32, 80, 8  # 8/3 of 32 rounded down to a multiple of 16 is 80
    block = 4 * c * c + 3 * c * f + 2 * c + 2 * d
    assert sum(p.numel() for p in Transformer(config()).parameters()) == 2 * V * c + 2 * block + c
    block = 4 * (c * c + c) + (4 * c * c + 4 * c) + (4 * c * c + c) + 2 * 2 * c
    gpt2 = Transformer(config(style="gpt2", tie_embeddings=True))
    assert sum(p.numel() for p in gpt2.parameters()) == V * c + T * c + 2 * block + 2 * c
    assert sum(p.numel() for p in gpt2.hidden_matrices()) == 2 * 12 * c * c
    gpt2_small = TransformerConfig(50_257, 1024, 12, 768, 12, style="gpt2", tie_embeddings=True)
    with torch.device("meta"):
        assert sum(p.numel() for p in Transformer(gpt2_small).parameters()) == 124_439_808


def test_flops_per_token() -> None:
    model = Transformer(config())
    c, f = 32, 80
    assert model.flops_per_token() == 6 * (2 * (4 * c * c + 3 * c * f) + V * c) + 12 * 2 * c * T


@pytest.mark.parametrize("style", STYLES)
def test_attention_is_causal(style: dict[str, object]) -> None:
    model, before = transformer(**style), tokens()
    after = before.clone()
    after[:, 9] = (after[:, 9] + 1) % V
    with torch.no_grad():
        differ = (model(before) != model(after)).any(dim=2)  # (B, T)
    assert not differ[:, :9].any()
    assert differ[:, 9:].all()


@pytest.mark.parametrize("style", STYLES)
def test_loss_is_the_mean_cross_entropy(style: dict[str, object]) -> None:
    model, rows = transformer(**style), tokens(length=T + 1)
    logits = model(rows[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    batch = {"inputs": rows[:, :-1].int(), "label": rows[:, -1].int()}
    loss = next_token_loss(model, batch)
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    for ours, plain in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-4)


def test_new_model_is_uniform_and_its_blocks_are_the_identity() -> None:
    model = Transformer(config())
    rows = tokens()
    assert model(rows[:, :-1], rows[:, 1:]).item() == pytest.approx(math.log(V))
    x = torch.randn(2, T, 32)
    for block in model.blocks:
        assert torch.equal(block(x, (model.cos[:, None], model.sin[:, None]), None, None), x)


def test_dropout_is_only_applied_in_training() -> None:
    model = transformer(dropout=0.5)
    assert torch.equal(model(tokens()), model(tokens()))
    model.train()
    assert not torch.equal(model(tokens()), model(tokens()))


def test_autocast_uses_bfloat16_and_the_loss_is_close() -> None:
    model, rows = transformer(), tokens(length=T + 1)
    exact = model(rows[:, :-1], rows[:, 1:])
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(rows[:, :-1], rows[:, 1:])
        assert model(rows[:, :-1]).dtype == torch.bfloat16
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    assert rough.item() != exact.item()


@pytest.mark.parametrize("style", STYLES)
def test_cached_decoding_equals_full_forward(style: dict[str, object]) -> None:
    """Prompts of different lengths, one longer than the context, until all have exceeded it twice."""
    model = transformer(**style)
    texts = [row.tolist()[:length] for row, length in zip(tokens(4, 20), (1, 5, 14, 20), strict=True)]
    reader = CachedDecoder(model)
    for step in range(40):
        logits = reader(texts)
        for text, row in zip(texts, logits, strict=True):
            seen = torch.tensor([text[window_start(len(text), T) :]])
            with torch.no_grad():
                expected = model(seen)[0, -1]
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4, msg=f"step {step}")
            text.append(int(row.argmax()))
    assert min(map(len, texts)) > 2 * T


def test_decoder_reads_each_token_once_until_the_context_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = transformer(), []
    features = model.features

    def counted(rows: Tensor, *arguments: object) -> Tensor:
        read.append(rows.size(1))
        return features(rows, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "features", counted)
    list(model.generate([[1, 2, 3]], Sampling(max_tokens=20)))
    assert read == [3] + [1] * (T - 3) + [T // 2 + 1] + [1] * (20 - (T - 3) - 2)


def test_half_of_a_full_context_is_dropped() -> None:
    assert [window_start(length, 4) for length in range(1, 11)] == [0, 0, 0, 0, 2, 2, 4, 4, 6, 6]
    assert [window_start(length, 5) for length in range(4, 13)] == [0, 0, 3, 3, 3, 6, 6, 6, 9]
    assert [window_start(length, 1) for length in (1, 2, 3)] == [0, 1, 2]
    for context in (1, 2, 7, 64):
        for length in range(1, 400):
            assert 1 <= length - window_start(length, context) <= context


def test_other_texts_reset_the_decoder() -> None:
    model = transformer()
    reader = CachedDecoder(model)
    reader([[1, 2, 3]])
    assert torch.equal(reader([[4, 5]]), model.next_logits([[4, 5]]))


def test_generation_does_not_change_the_model() -> None:
    model = transformer(dropout=0.5).train()
    once = list(model.generate([[1, 2]], Sampling(max_tokens=8)))
    assert once == list(model.generate([[1, 2]], Sampling(max_tokens=8)))
    assert model.training
    assert not model.next_logits([[1]]).requires_grad


def test_generated_text_does_not_depend_on_the_batch() -> None:
    model = transformer()
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    batch = list(model.generate(prompts, Sampling(max_tokens=30, seed=7)))
    alone = list(model.generate(prompts[:1], Sampling(max_tokens=30, seed=7)))
    assert [row[0] for row in batch] == [token for (token,) in alone]
    second = list(model.generate(prompts[1:2], Sampling(max_tokens=30, seed=8)))
    assert [row[1] for row in batch] == [token for (token,) in second]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"vocabulary": 0}, "vocabulary is 0"),
        ({"layers": 0}, "layers is 0"),
        ({"heads": 5}, "width is 32: it must be a multiple of heads, 5"),
        ({"kv_heads": 3}, "kv_heads is 3: it must be a divisor of heads, 4"),
        ({"kv_heads": -1}, "kv_heads is -1"),
        ({"ffn_dim": -4}, "ffn_dim is -4"),
        ({"width": 36, "heads": 4}, "need an even width per head"),
        ({"style": "gpt2", "kv_heads": 2}, "omit kv_heads"),
        ({"style": "gpt3"}, "must be 'modern' or 'gpt2'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"rope_base": 1.0}, "rope_base is 1.0"),
    ],
)
def test_inconsistent_shapes_are_rejected(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        config(**changes)


def test_empty_and_long_texts_are_rejected() -> None:
    model = transformer()
    with pytest.raises(ValueError, match="17 tokens exceed the context of 16"):
        model(tokens(1, T + 1))
    with pytest.raises(ValueError, match="pass at least one token"):
        model.next_logits([[1], []])
