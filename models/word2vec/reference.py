"""Skip-gram with negative sampling in plain torch, pair by pair: the reference for the kernels.

Mikolov et al. (2013), "Distributed Representations of Words and Phrases and their Compositionality", eq. 4.
Optimized for clarity, not speed; float64 tables give float64 results.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lexloom.models.word2vec.blocks import MAX_RUN


def runs(targets: Sequence[int]) -> list[tuple[int, int]]:
    """Return (start, stop) of every run: up to `MAX_RUN` adjacent pairs of one target."""
    starts = list[int]()
    for i, target in enumerate(targets):
        if i == 0 or target != targets[i - 1] or i == starts[-1] + MAX_RUN:
            starts.append(i)
    return list(pairwise([*starts, len(targets)]))


def train_batch(
    vectors: Tensor,  # (rows, dim) an input part, changed in place
    outputs: Tensor,  # (rows, dim) an output part, changed in place
    targets: Sequence[int],  # (pairs,)
    contexts: Sequence[int],  # (pairs,)
    negatives: Sequence[Sequence[int]],  # (runs, K): the noise words of each run
    learning_rate: float,
) -> float:
    """Train on the pairs of one block, run by run; return the loss summed over them.

    Within a run the output rows keep their initial values, and their updates are accumulated; a context's
    input row is updated at once. A noise word equal to the target is skipped; one drawn twice counts twice.
    """
    loss = 0.0
    for (start, stop), noise in zip(runs(targets), negatives, strict=True):
        target = targets[start]
        output_ids = torch.tensor([target, *(word for word in noise if word != target)])  # (C,), C <= 1 + K
        labels = torch.zeros(len(output_ids), dtype=vectors.dtype)
        labels[0] = 1.0
        rows = outputs[output_ids]  # (C, dim), a copy
        updates = torch.zeros_like(rows)
        for context in contexts[start:stop]:
            vector = vectors[context].clone()  # (dim,)
            scores = rows @ vector  # (C,)
            loss += float(softplus(torch.where(labels == 1.0, -scores, scores)).sum())
            steps = learning_rate * (labels - torch.sigmoid(scores))
            vectors[context] += steps @ rows
            updates += torch.outer(steps, vector)
        outputs.index_add_(0, output_ids, updates)
    return loss
