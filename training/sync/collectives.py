"""Communication between workers: means of many tensors in few messages, and sums of a few numbers."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 25 * 2**20  # large enough to make the latency of a message negligible


class WeightedMean:
    """The mean of tensors over all workers, weighted by each worker's share.

    Tensors are sent in flat buckets, which are kept between calls; one bucket is sent while the next is
    filled. `comm_dtype` is the dtype in which they are sent; shares are applied before rounding to it. Every
    worker receives the same sums, so the results are equal bit for bit.

    Attributes:
        nbytes: bytes that a worker sends per call.
    """

    def __init__(
        self, like: Sequence[Tensor], world_size: int, comm_dtype: torch.dtype = torch.float32
    ) -> None:
        self._buckets: list[tuple[slice, Tensor]] = []
        if world_size > 1:
            start = size = 0
            for end, tensor in enumerate(like, 1):
                size += tensor.numel()
                if size * comm_dtype.itemsize >= BUCKET_BYTES or end == len(like):
                    buffer = torch.empty(size, dtype=comm_dtype, device=tensor.device)
                    self._buckets.append((slice(start, end), buffer))
                    start, size = end, 0
        self.nbytes = sum(buffer.nbytes for _, buffer in self._buckets)

    @torch.no_grad()
    def __call__(self, tensors: Sequence[Tensor], share: float) -> None:
        """Replace `tensors` (of the original shapes) with their mean; the shares must add up to 1."""
        messages = []
        for part, buffer in self._buckets:
            for tensor, view in zip(tensors[part], split_views(buffer, tensors[part]), strict=True):
                torch.mul(tensor, share, out=view)
            messages.append(dist.all_reduce(buffer, async_op=True))
        for (part, buffer), message in zip(self._buckets, messages, strict=True):
            message.wait()
            for tensor, view in zip(tensors[part], split_views(buffer, tensors[part]), strict=True):
                tensor.copy_(view)


def split_views(buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Split a flat buffer into views with the shapes of the tensors."""
    pieces = buffer.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def sum_over_workers(values: Sequence[float], world_size: int, device: str = "cpu") -> list[float]:
    """Sum a few numbers element-wise over all workers; also a barrier."""
    if world_size == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def gather_from_workers(
    values: Sequence[float], rank: int, world_size: int, device: str = "cpu"
) -> list[list[float]]:
    """Gather a few numbers from every worker, in the order of their ranks."""
    slots = [0.0] * len(values) * world_size  # each worker fills its own
    slots[len(values) * rank : len(values) * (rank + 1)] = values
    slots = sum_over_workers(slots, world_size, device)
    return [slots[start : start + len(values)] for start in range(0, len(slots), len(values))]
