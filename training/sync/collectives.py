"""What travels between workers: means of many tensors in few messages, and sums of a few figures."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 25 * 2**20  # enough that a message's fixed cost is nothing beside its transfer


class WeightedMean:
    """The mean over all workers of a list of tensors, each worker's weighted by its share.

    Tensors travel together in flat buckets, kept between calls: one bucket is on its way while the next is
    filled. `wire` is the type in which they travel; shares are applied before the rounding to it. Every
    worker receives the same sums, so the results are equal bit for bit.

    Attributes:
        nbytes: what a worker hands to the network in one call.
    """

    def __init__(self, like: Sequence[Tensor], world_size: int, wire: torch.dtype = torch.float32) -> None:
        self._buckets: list[tuple[slice, Tensor]] = []
        if world_size > 1:
            start = size = 0
            for end, tensor in enumerate(like, 1):
                size += tensor.numel()
                if size * wire.itemsize >= BUCKET_BYTES or end == len(like):
                    buffer = torch.empty(size, dtype=wire, device=tensor.device)
                    self._buckets.append((slice(start, end), buffer))
                    start, size = end, 0
        self.nbytes = sum(buffer.nbytes for _, buffer in self._buckets)

    @torch.no_grad()
    def __call__(self, tensors: Sequence[Tensor], share: float) -> None:
        """Puts the mean into `tensors` (of the shapes given at first); the workers' shares add up to 1."""
        on_their_way = []
        for part, buffer in self._buckets:
            for tensor, view in zip(tensors[part], views(buffer, tensors[part]), strict=True):
                torch.mul(tensor, share, out=view)
            on_their_way.append(dist.all_reduce(buffer, async_op=True))
        for (part, buffer), message in zip(self._buckets, on_their_way, strict=True):
            message.wait()
            for tensor, view in zip(tensors[part], views(buffer, tensors[part]), strict=True):
                tensor.copy_(view)


def views(buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The flat buffer cut into pieces of the tensors' shapes."""
    pieces = buffer.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def sum_over_workers(values: Sequence[float], world_size: int, device: str = "cpu") -> list[float]:
    """The element-wise sum of a few figures over all workers; nobody goes on before all have come here."""
    if world_size == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def every_workers(
    values: Sequence[float], rank: int, world_size: int, device: str = "cpu"
) -> list[list[float]]:
    """A few figures of every worker, in the order of their ranks."""
    places = [0.0] * len(values) * world_size  # each worker fills in its own
    places[len(values) * rank : len(values) * (rank + 1)] = values
    places = sum_over_workers(places, world_size, device)
    return [places[start : start + len(values)] for start in range(0, len(places), len(values))]
