"""Compare llama.cpp with Lexloom on exported models: token ids of texts, and ids of greedy decoding.

    pip install llama-cpp-python
    python benchmarks/llama_cpp_text.py --data tinyshakespeare.txt [--encodings characters bytes bpe gpt2 ...]

For each encoding and architecture, a tiny model with random weights is exported. Texts are excerpts of the
data, and random mixtures of letters, digits, apostrophes, spaces and line feeds. llama.cpp computes in
float32, including its KV cache.

Results are written to benchmarks/results/llama_cpp_text.json.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_cpp import Llama
from measure import table, write_results

from lexloom.models.sampling import Sampling, sample_tokens
from lexloom.models.tokenizer.bpe_ranks import PUBLISHED
from lexloom.models.tokenizer.bpe_training import train_byte_pairs
from lexloom.models.tokenizer.tokenizer import Encoding, Tokenizer
from lexloom.models.transformer.config import TransformerConfig
from lexloom.models.transformer.gguf_export import export_gguf
from lexloom.models.transformer.hf_io import save
from lexloom.models.transformer.model import CachedDecoder, Transformer
from lexloom.tasks.sources.token_encodings import LocatedEncoding

RESULTS = Path(__file__).parent / "results" / "llama_cpp_text.json"
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3": {"kv_heads": 2},
    "gpt2": {"style": "gpt2", "tie_embeddings": True},
    "llama": {"qk_norm": False, "kv_heads": 2, "rope_scaling": (4.0, 1.0, 4.0, 48)},
    "qwen2": {"qk_norm": False, "qkv_bias": True, "tie_embeddings": True},
}
CONTEXT, PROMPT, NEW = 256, 30, 60
FLOAT32 = 0  # ggml's id of the type
ALPHABET = "abcdestl ABC    \n\n''’..,12345\t"
TEXTS, CONTINUED = 600, 20


def published(name: str) -> Encoding:
    return LocatedEncoding(name=name, digest=PUBLISHED[name].sha256, path=None).load()


def compact(encoding: Encoding, text: str) -> Tokenizer:
    counts = np.bincount(encoding.encode(text), minlength=encoding.size)
    return Tokenizer(encoding, encoding.keep(counts > 0))


def make_tokenizer(name: str, text: str) -> Tokenizer:
    makers: dict[str, Callable[[], Tokenizer]] = {
        "characters": lambda: Tokenizer.of_characters(text),
        "bytes": Tokenizer.of_bytes,
        "bpe": lambda: Tokenizer(train_byte_pairs([text], 1024)),
    }
    return makers.get(name, lambda: compact(published(name), text))()


def make_texts(text: str) -> list[str]:
    generator = random.Random(0)
    excerpts = []
    for _ in range(TEXTS // 2):
        start = generator.randrange(len(text) - 200)
        excerpts.append(text[start : start + generator.randrange(1, 200)])
    mixed = ["".join(generator.choices(ALPHABET, k=40)) for _ in range(TEXTS // 2)]
    return excerpts + mixed


def compare(tokenizer: Tokenizer, options: dict[str, Any], texts: list[str], folder: Path) -> dict[str, Any]:
    """Export a model with random weights; count the texts for which llama.cpp agrees."""
    torch.manual_seed(0)
    shape = TransformerConfig(
        tokenizer.size + 5, CONTEXT, layers=2, width=64, heads=4, end_of_text=tokenizer.end_of_text, **options
    )
    model = Transformer(shape).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save(model, folder)
    tokenizer.save(folder / "tokenizer")
    export_gguf(folder, folder / "model.gguf")
    theirs = Llama(
        str(folder / "model.gguf"),
        n_ctx=CONTEXT,
        n_threads=1,
        n_threads_batch=1,
        type_k=FLOAT32,
        type_v=FLOAT32,
        verbose=False,
    )
    encoded = {text: tokenizer.encode(text) for text in texts}
    ids = [theirs.tokenize(text.encode(), add_bos=True, special=False) == encoded[text] for text in texts]
    greedy = []
    for prompt in [encoded[text][:PROMPT] for text in texts[:CONTINUED]]:
        ours = continue_greedily(model, prompt, tokenizer)
        found = theirs.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0)
        greedy.append([int(token) for token in islice(found, len(ours))] == ours)
    return {"texts": TEXTS, "equal_ids": sum(ids), "continued": CONTINUED, "equal": sum(greedy)}


def continue_greedily(model: Transformer, prompt: list[int], tokenizer: Tokenizer) -> list[int]:
    decoder = CachedDecoder(model)
    steps = sample_tokens(
        lambda texts: decoder(texts)[:, : tokenizer.size], [prompt], Sampling(max_tokens=NEW, temperature=0)
    )
    return [token for (token,) in steps if token is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encodings", nargs="+", default=["characters", "bytes", "bpe", "gpt2"])
    arguments = parser.parse_args()
    text = arguments.data.read_text(encoding="utf-8")[:300_000] + ALPHABET
    texts = make_texts(text)
    results: dict[str, Any] = {"llama_cpp_python": version("llama-cpp-python"), "models": {}}
    rows = []
    for name in arguments.encodings:
        tokenizer = make_tokenizer(name, text)
        for architecture, options in ARCHITECTURES.items():
            with tempfile.TemporaryDirectory() as folder:
                found = compare(tokenizer, options, texts, Path(folder))
            results["models"][f"{name}, {architecture}"] = found
            ids, greedy = (
                f"{found[a]} of {found[b]}" for a, b in (("equal_ids", "texts"), ("equal", "continued"))
            )
            rows.append([name, architecture, ids, greedy])
            print(rows[-1], flush=True)
    write_results(RESULTS, results)
    print(table(["encoding", "architecture", "equal ids", "equal greedy text"], rows))


if __name__ == "__main__":
    main()
