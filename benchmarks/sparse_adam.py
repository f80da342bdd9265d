"""Skip-gram in plain PyTorch: sparse embeddings, SparseAdam, the mean loss of a large batch."""

import time

import numpy as np
import torch
from torch import nn
from torch.nn.functional import logsigmoid

BATCH, STEPS = 300_000, 4
RATE = 0.001


def pairs_per_second(
    targets: np.ndarray,
    contexts: np.ndarray,
    *,
    words: int,
    dim: int,
    negatives: int,
    device: str = "cpu",
    batch: int = BATCH,
) -> list[float]:
    """Return the pairs per second of each step except the first.

    Args:
        targets, contexts: (pairs,) int32, at least four batches.
    """
    inputs, outputs = (nn.Embedding(words, dim, sparse=True, device=device) for _ in range(2))
    optimizer = torch.optim.SparseAdam([*inputs.parameters(), *outputs.parameters()], lr=RATE)
    rates = []
    for step in range(STEPS):
        some = slice(step * batch, (step + 1) * batch)
        target, context = (torch.from_numpy(ids[some].astype(np.int64)) for ids in (targets, contexts))
        begun = time.perf_counter()
        vectors = inputs(context.to(device))  # (pairs, dim)
        right = (vectors * outputs(target.to(device))).sum(1)
        noise = outputs(torch.randint(words, (len(target), negatives), device=device))  # (pairs, K, dim)
        wrong = torch.einsum("pkd,pd->pk", noise, vectors)
        loss = -(logsigmoid(right) + logsigmoid(-wrong).sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # synchronizes with the GPU
        rates.append(len(target) / (time.perf_counter() - begun))
    return rates[1:]
