"""Compare the transformer with nanoGPT's recipe and the Hugging Face Trainer: time to a loss, speed, memory.

    python benchmarks/transformer.py loss --data tinyshakespeare.txt [--nanogpt FOLDER] [--rounds 1]
    python benchmarks/transformer.py speed
    python benchmarks/transformer.py gpu --data tinyshakespeare.txt

`loss`: characters, 4 blocks of width 128, context 64, two CPU threads. The baseline is nanoGPT's recipe for
CPUs (2000 steps of 12 windows; AdamW from 1e-3 to 1e-4 after 100 steps of warm-up, betas .9 and .99, weight
decay .1, clip 1). With --nanogpt, it is nanoGPT itself in that folder; otherwise `RecipeGPT`, the same
network in plain PyTorch. Both hold out the last tenth of the text, and are evaluated on all of it in
adjacent windows. Seconds include training and compilation, but not evaluation. A round trains the baseline,
then Lexloom to a loss of 1.88, then Lexloom for about the baseline's time. Each call adds its rounds to the
results.

`speed`: training compared with the Trainer of transformers on the same GPT-2 architecture; generation with
and without the KV cache; memory and time of the chunked cross-entropy.

`gpu` needs torch, numpy, pyarrow and safetensors. It trains 10.6M parameters on characters to a loss of
1.4697, and measures the share of the GPU's peak performance when training 124M parameters.
"""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexloom.models.compilation import compile_modules
from lexloom.models.layers.cross_entropy import linear_cross_entropy
from lexloom.models.optim import OptimizerConfig, make_optimizer
from lexloom.models.precision import Layer, is_bfloat16_faster
from lexloom.models.transformer.model import CachedDecoder, Transformer, TransformerConfig, next_token_loss
from lexloom.training.job import Job
from lexloom.training.loop import train
from lexloom.training.schedules import warm_up_stable_decay
from lexloom.training.stopping import Stopping
from lexloom.training.sync.config import SyncConfig
from lexloom.training.torch_trainable import TorchTrainable

RESULTS = Path(__file__).parent / "results"
THREADS = 2
CONTEXT, BLOCKS, WIDTH = 64, 4, 128
TARGET = 1.88  # the loss that nanoGPT reports for its recipe
PEER_STEPS, PEER_BATCH, PEER_HEADS = 2000, 12, 4
BATCH, HEADS = 32, 2
SHORT_STEPS, LONG_STEPS = 105, 540
SHUFFLE_BUFFER_BYTES = 1 << 27


# text


def read_characters(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Return training ids, the ids of the last tenth (int32), and the number of characters."""
    text = path.read_text(encoding="utf-8")
    characters = sorted(set(text))
    ids = np.array([characters.index(character) for character in text], np.int32)
    split = int(0.9 * len(ids))
    return ids[:split], ids[split:], len(characters)


def windows(ids: np.ndarray, context: int) -> np.ndarray:
    """Return windows (rows, context + 1); each begins with the last token of the previous one."""
    return np.lib.stride_tricks.sliding_window_view(ids, context + 1)[::context]


def write_windows(path: Path, ids: np.ndarray, context: int) -> Path:
    rows = windows(ids, context)
    inputs = pa.FixedSizeListArray.from_arrays(pa.array(rows[:, :-1].ravel()), context)
    pq.write_table(pa.table({"inputs": inputs, "label": rows[:, -1]}), path, row_group_size=1024)
    return path


# Lexloom


def trainable(
    network: TransformerConfig,
    optimizer: OptimizerConfig,
    *,
    seed: int = 1,
    decay: float = 0.5,
    compiled: bool = False,
    device: str = "cpu",
    micro_batch: int | None = None,
) -> TorchTrainable:
    def make() -> Transformer:
        model = Transformer(network)
        if compiled:
            compile_modules(model.blocks, device)
        return model

    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        assert isinstance(model, Transformer)
        return make_optimizer(model, model.hidden_matrices(), optimizer)

    layer = Layer((micro_batch or BATCH) * network.context, network.width, network.ffn_dim)
    return TorchTrainable(
        make,
        next_token_loss,
        optimizer_of,
        schedule=partial(warm_up_stable_decay, warm_up=0.0, decay=decay),
        bfloat16=partial(is_bfloat16_faster, layer),
        threads=THREADS if device == "cpu" else None,
        micro_batch=micro_batch,
        seed=seed,
    )


def train_lexloom(
    make: Callable[[], TorchTrainable],
    shards: tuple[Path, Path],
    steps: int,
    batch: int,
    seed: int,
) -> tuple[float, float]:
    """Train with Lexloom's loop; return the seconds and the loss on all held-out windows."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            Job(
                make_trainable=make,
                files=(shards[0],),
                columns=("inputs", "label"),
                checkpoints=Path(folder),
                fingerprint="benchmark",
                batch_size=batch,
                lanes=min(64, 1 << batch.bit_length() - 1),
                stopping=Stopping(max_steps=steps),
                sync=SyncConfig(),
                checkpoint_every=steps,
                seed=seed,
                validation=(shards[1],),
                evaluate_every=steps,
                shuffle_buffer_bytes=SHUFFLE_BUFFER_BYTES,
            )
        )
    return run.seconds - run.evaluation_seconds, run.scores[-1]["loss"]


# nanoGPT's recipe


class RecipeBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.attention = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C)
        heads = self.attention(self.norms[0](x)).unflatten(-1, (3, PEER_HEADS, -1))  # (B, T, 3, H, D)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class RecipeGPT(nn.Module):
    """nanoGPT's network with its CPU settings: tied embeddings, learned positions, no biases."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(RecipeBlock() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                ends_branch = name.endswith(("projection.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * BLOCKS) if ends_branch else 0.02)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.table(tokens) + self.positions.weight[: tokens.size(1)]
        logits = self.norm(self.blocks(x)) @ self.table.weight.T
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def make_peer(folder: Path | None, vocabulary: int) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """Return the baseline's network, optimizer, and loss as a function of (tokens, labels)."""
    if folder is None:
        model: nn.Module = RecipeGPT(vocabulary)
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        return model, torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99)), model
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    shape = {"n_layer": BLOCKS, "n_head": PEER_HEADS, "n_embd": WIDTH, "block_size": CONTEXT}
    model = module.GPT(module.GPTConfig(**shape, vocab_size=vocabulary, dropout=0.0, bias=False))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    return model, optimizer, lambda tokens, labels: model(tokens, labels)[1]


def peer_rate(step: int) -> float:
    """Return the learning rate: warm-up to 1e-3 in 100 steps, then cosine decay to 1e-4."""
    if step < 100:
        return 1e-3 * (step + 1) / 101
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / (PEER_STEPS - 100))) * 9e-4


def train_peer(
    folder: Path | None, ids: np.ndarray, held_out: np.ndarray, vocabulary: int, seed: int
) -> tuple[float, float]:
    """Train the baseline; return the seconds and the loss on all held-out windows."""
    torch.manual_seed(seed)
    model, optimizer, loss_of = make_peer(folder, vocabulary)
    tokens = torch.from_numpy(ids).long()
    started = time.perf_counter()
    for step in range(PEER_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = peer_rate(step)
        starts = torch.randint(len(tokens) - CONTEXT, (PEER_BATCH,)).tolist()
        inputs = torch.stack([tokens[start : start + CONTEXT] for start in starts])
        labels = torch.stack([tokens[start + 1 : start + 1 + CONTEXT] for start in starts])
        loss_of(inputs, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    rows = torch.from_numpy(windows(held_out, CONTEXT).astype(np.int64))
    with torch.no_grad():
        parts = [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in rows.split(256)]
        losses = [float(loss_of(inputs, labels)) * len(inputs) for inputs, labels in parts]
    return seconds, sum(losses) / len(rows)


def measure_loss(arguments: argparse.Namespace) -> None:
    from measure import summary, table, write_results

    torch.set_num_threads(THREADS)
    ids, held_out, vocabulary = read_characters(arguments.data)
    network = TransformerConfig(vocabulary, CONTEXT, BLOCKS, WIDTH, HEADS)
    optimizer = OptimizerConfig(matrix_lr=0.04, lr=0.01, momentum=0.85)
    peer = "nanoGPT" if arguments.nanogpt else "nanoGPT's recipe, restated"
    path = RESULTS / "transformer-loss.json"
    rounds: list[dict[str, Any]] = json.loads(path.read_text())["rounds"] if path.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        shards = (
            write_windows(Path(folder) / "train.parquet", ids, CONTEXT),
            write_windows(Path(folder) / "held-out.parquet", held_out, CONTEXT),
        )
        for _ in range(arguments.rounds):
            seed = len(rounds) + 1
            seconds, loss = train_peer(arguments.nanogpt, ids, held_out, vocabulary, seed)
            found: dict[str, Any] = {"seed": seed, "peer": peer, "peer_seconds": seconds, "peer_loss": loss}
            for name, steps in (("short", arguments.short), ("long", arguments.long)):
                make = partial(trainable, network, optimizer, seed=seed, compiled=arguments.compile)
                seconds, loss = train_lexloom(make, shards, steps, BATCH, seed)
                found |= {f"{name}_steps": steps, f"{name}_seconds": seconds, f"{name}_loss": loss}
            found["compiled"] = arguments.compile
            rounds.append(found)
            print(found, flush=True)
    figures = {
        name: summary([found[name] for found in rounds])
        for name in ("peer_seconds", "peer_loss", "short_seconds", "short_loss", "long_seconds", "long_loss")
    }
    parameters = {
        "lexloom": sum(parameter.numel() for parameter in Transformer(network).parameters()),
        "peer": sum(parameter.numel() for parameter in RecipeGPT(vocabulary).parameters()),
    }
    print(
        table(
            ["", "seconds", "held-out loss"],
            [
                [name, str(figures[f"{key}_seconds"]["median"]), str(figures[f"{key}_loss"]["median"])]
                for name, key in ((peer, "peer"), ("Lexloom", "short"), ("Lexloom, longer", "long"))
            ],
        )
    )
    write_results(path, {"parameters": parameters, "target": TARGET, "figures": figures, "rounds": rounds})


# speed


def hugging_face_rate(ids: np.ndarray, vocabulary: int, steps: int, bfloat16: bool) -> float:
    """Return the tokens per second of transformers' Trainer on GPT-2's architecture, with default options."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    shape = {"n_layer": BLOCKS, "n_head": PEER_HEADS, "n_embd": WIDTH, "n_positions": CONTEXT}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **shape))
    rows = torch.from_numpy(windows(ids, CONTEXT)[: steps * BATCH, :-1].astype(np.int64))
    examples: Any = [{"input_ids": row, "labels": row} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            use_cpu=True,
            bf16=bfloat16,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        seconds = Trainer(model, options, train_dataset=examples).train().metrics["train_runtime"]
    return steps * BATCH * CONTEXT / seconds


def generated_rate(model: Transformer, cached: bool, tokens: int = 256) -> float:
    """Return the tokens per second of greedy decoding."""
    text = [1] * 8
    reader = CachedDecoder(model)
    started = time.perf_counter()
    for _ in range(tokens):
        logits = (reader if cached else CachedDecoder(model))([text])
        text.append(int(logits.argmax()))
    return tokens / (time.perf_counter() - started)


def cross_entropy_costs(chunked: bool) -> None:
    """Print the seconds and peak MB of one forward and backward pass, in a new process."""
    from measure import peak_megabytes

    torch.set_num_threads(THREADS)
    features = torch.randn(4096, 768, requires_grad=True)
    weight = torch.randn(50_304, 768).mul_(0.02).requires_grad_()
    labels = torch.randint(50_257, (4096,))
    before = peak_megabytes()
    started = time.perf_counter()
    if chunked:
        loss = linear_cross_entropy(features, weight, labels) / len(labels)
    else:
        loss = F.cross_entropy(F.linear(features, weight).float(), labels)
    loss.backward()
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, peak_megabytes() - before]))


def measure_speed(arguments: argparse.Namespace) -> None:
    from measure import summary, table, write_results

    torch.set_num_threads(THREADS)
    ids = np.random.default_rng(0).integers(0, 65, 600_000).astype(np.int32)
    modern = TransformerConfig(65, CONTEXT, BLOCKS, WIDTH, HEADS)
    gpt2 = TransformerConfig(65, CONTEXT, BLOCKS, WIDTH, PEER_HEADS, style="gpt2", tie_embeddings=True)
    adamw = OptimizerConfig("adamw", matrix_lr=1e-3, lr=1e-3)
    rates: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rates.setdefault(name, []).append(value)
        print(name, round(value, 1), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        shard = write_windows(Path(folder) / "train.parquet", ids, CONTEXT)
        few = write_windows(Path(folder) / "held-out.parquet", ids[: 10 * CONTEXT], CONTEXT)
        for round_ in range(arguments.rounds):
            for bfloat16 in (False, True):
                name = f"Trainer, {'bfloat16' if bfloat16 else 'float32'} (tokens/s)"
                note(name, hugging_face_rate(ids, 65, arguments.steps, bfloat16))
            for name, network, config in (
                ("Lexloom, GPT-2's architecture, AdamW (tokens/s)", gpt2, adamw),
                ("Lexloom, its own, AdamW (tokens/s)", modern, adamw),
                ("Lexloom, its own, Muon (tokens/s)", modern, OptimizerConfig()),
            ):
                make = partial(trainable, network, config)
                seconds, _ = train_lexloom(make, (shard, few), arguments.steps, BATCH, round_)
                note(name, arguments.steps * BATCH * CONTEXT / seconds)
            larger = Transformer(TransformerConfig(65, 512, 6, 384, 6)).eval()
            note("generation with the cache (tokens/s)", generated_rate(larger, cached=True))
            note("generation without (tokens/s)", generated_rate(larger, cached=False))
            for chunked in (True, False):
                name = f"cross-entropy, {'chunked' if chunked else 'whole'}"
                command = [sys.executable, __file__, "cross-entropy", *(["--chunked"] if chunked else [])]
                seconds, megabytes = json.loads(subprocess.check_output(command))
                note(f"{name} (s)", seconds)
                note(f"{name} (MB)", megabytes)
    figures = {name: summary(values) for name, values in rates.items()}
    print(table(["", "median"], [[name, f"{found['median']:,.1f}"] for name, found in figures.items()]))
    write_results(RESULTS / "transformer-speed.json", {"steps": arguments.steps, "figures": figures})


# GPU

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}  # dense bfloat16
GPU_TARGET = 1.4697  # nanoGPT's best loss on characters


def steps_to_target(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train 10.6M parameters on characters, and evaluate periodically until the target is reached."""
    ids, held_out, vocabulary = read_characters(arguments.data)
    network = TransformerConfig(vocabulary, 256, 6, 384, 6, dropout=0.2)
    model = trainable(
        network, OptimizerConfig(matrix_lr=0.02, lr=0.003), compiled=arguments.compile, device="cuda"
    )
    model.prepare("cuda")
    rows, held_rows = windows(ids, 256), windows(held_out, 256)
    generator = np.random.default_rng(1)
    seconds, curve = 0.0, []
    for step in range(arguments.steps + 1):
        if step % arguments.every == 0:
            sums = [model.evaluate(as_batch(part)) for part in np.array_split(held_rows, 8)]
            loss = sum(total for total, _ in sums) / sum(count for _, count in sums)
            curve.append({"step": step, "seconds": seconds, "loss": loss})
            print(curve[-1], flush=True)
            if loss <= GPU_TARGET:
                break
        starts = generator.integers(0, len(ids) - 257, arguments.batch)
        batch = np.stack([ids[start : start + 257] for start in starts])
        torch.cuda.synchronize()
        started = time.perf_counter()
        model.train_step(as_batch(batch), progress=step / arguments.steps, seed=step)
        torch.cuda.synchronize()
        seconds += time.perf_counter() - started
    return {"target": GPU_TARGET, "windows": len(rows), "curve": curve}


def as_batch(rows: np.ndarray) -> dict[str, np.ndarray]:
    return {"inputs": np.ascontiguousarray(rows[:, :-1]), "label": np.ascontiguousarray(rows[:, -1])}


def share_of_peak(arguments: argparse.Namespace, peak: float) -> dict[str, float]:
    """Measure the training speed of 124M parameters on random tokens."""
    network = TransformerConfig(50_304, 1024, 12, 768, 12, tie_embeddings=True)
    optimizer = OptimizerConfig(matrix_lr=0.02, lr=0.003)
    model = trainable(network, optimizer, compiled=arguments.compile, device="cuda", micro_batch=16)
    model.prepare("cuda")
    batch = as_batch(np.random.default_rng(0).integers(0, 50_257, (64, 1025)).astype(np.int32))
    times = []
    for step in range(20):
        torch.cuda.synchronize()
        started = time.perf_counter()
        model.train_step(batch, progress=0.1, seed=step)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    rate = 64 * 1024 / median(times[5:])
    assert isinstance(model.module, Transformer)
    return {"tokens_per_second": rate, "share_of_peak": rate * model.module.flops_per_token() / peak}


def measure_gpu(arguments: argparse.Namespace) -> None:
    name = torch.cuda.get_device_name()
    peak = arguments.peak or next((flops for key, flops in PEAKS.items() if key in name), None)
    if peak is None:
        raise SystemExit(f"the peak of {name} is not known here: say --peak, in bfloat16 operations a second")
    found = {"gpu": name, "torch": torch.__version__, "peak": peak, "compiled": arguments.compile}
    found |= {"characters": steps_to_target(arguments), "small": share_of_peak(arguments, peak)}
    path = RESULTS / "transformer-gpu.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(found["small"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    loss = parts.add_parser("loss")
    loss.add_argument("--data", type=Path, required=True)
    loss.add_argument("--nanogpt", type=Path)
    loss.add_argument("--rounds", type=int, default=1)
    loss.add_argument("--short", type=int, default=SHORT_STEPS, help="steps for the loss of 1.88")
    loss.add_argument("--long", type=int, default=LONG_STEPS, help="steps for about the peer's time")
    loss.add_argument("--compile", action="store_true")
    speed = parts.add_parser("speed")
    speed.add_argument("--rounds", type=int, default=3)
    speed.add_argument("--steps", type=int, default=60)
    gpu = parts.add_parser("gpu")
    gpu.add_argument("--data", type=Path, required=True)
    gpu.add_argument("--steps", type=int, default=1000)
    gpu.add_argument("--every", type=int, default=100, help="steps between two looks at the held-out loss")
    gpu.add_argument("--batch", type=int, default=64)
    gpu.add_argument("--peak", type=float)
    gpu.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    costs = parts.add_parser("cross-entropy")
    costs.add_argument("--chunked", action="store_true")
    arguments = parser.parse_args()
    if arguments.part == "cross-entropy":
        cross_entropy_costs(arguments.chunked)
    else:
        {"loss": measure_loss, "speed": measure_speed, "gpu": measure_gpu}[arguments.part](arguments)


if __name__ == "__main__":
    main()
