"""Ranks and the messages between them. A group of one rank passes everything through.

                 rank 0          rank 1
    column   |  rows 0..n/2  |  rows n/2..n  |   each rank holds a share of the outputs: no message
    row      | columns 0..m/2| columns m/2..m|   each rank holds a share of the inputs: sums meet in all_reduce

Source: Shoeybi et al. 2019, "Megatron-LM", section 3.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks that share one split; `rank` is this process's place among `size`."""

    rank: int = 0
    size: int = 1

    def share(self, total: int, what: str) -> int:
        """Return one rank's part of `total`, which must divide evenly."""
        if total % self.size:
            raise ValueError(f"{what}: {total} does not divide by {self.size} ranks")
        return total // self.size

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum `x` over the ranks, in place where there are several."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.all_reduce(x)
        return x


SINGLE = Group()
