"""Linear layers that are split over ranks, fuse several checkpoint tensors in one weight, and load themselves.

A weight's rows are a sequence of named pieces. Of each piece a rank keeps an equal share, so that the share
of the fused weight is again the fused weight of the shares:

    rank 0 | q[:half] | k[:half] | v[:half] |        rank 1 | q[half:] | k[half:] | v[half:] |
"""

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from tilewise.layers.slot import Layer, Slot, parameter
from tilewise.parallel import SINGLE, Group
from tilewise.quant import Method, Plain


class ColumnLinear(Layer):
    """y = x W^T + b with the outputs split over ranks; every rank sees all of x."""

    def __init__(
        self,
        in_features: int,
        pieces: Mapping[str, int],
        *,
        dtype: torch.dtype,
        bias: bool = False,
        num_groups: int = 1,
        group: Group = SINGLE,
        method: Method | None = None,
    ) -> None:
        """Create the weight of `pieces` (name -> rows over all ranks), in order; `num_groups` is for `slot`."""
        super().__init__()
        self.in_features, self.num_groups = in_features, num_groups
        self.pieces = dict(pieces)
        self.group = group
        self.method: Method = method or Plain()
        self.shares = {name: group.share(rows, name) for name, rows in pieces.items()}
        *starts, rows = accumulate(self.shares.values(), initial=0)
        self._starts = dict(zip(self.shares, starts, strict=True))
        self.method.create(self, rows, in_features, dtype)
        self.bias = parameter(rows, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., this rank's rows)."""
        return self.method.apply(self, x, self.bias)

    def forward_gated(self, x: Tensor) -> Tensor:
        """SwiGLU over two equal pieces without biases: (..., in_features) -> (..., half of this rank's rows)."""
        return self.method.apply_gated(self, x)

    def _load_piece(self, piece: str, tensor: Tensor) -> None:
        share, start = self.shares[piece], self._starts[piece]
        part = tensor.narrow(0, self.group.rank * share, share)
        if tensor.dim() == 1:
            assert self.bias is not None
            self.bias.data[start : start + share].copy_(part)
        else:
            self.method.load(self, part, start)

    def slot(self, parameter: str, piece: str | None = None) -> Slot:
        """Return the place of `piece`'s weight or bias; without a piece, of all pieces one after the other.

        `grouped` takes `num_groups` groups, each with an equal part of every piece: InternLM2's `wqkv` holds the
        query heads, key and value of each KV head in turn.
        """
        tail = (self.in_features,) if parameter == "weight" else ()
        if piece in self.pieces:
            return Slot((self.pieces[piece], *tail), lambda tensor: self._load_piece(piece, tensor))
        num_groups = self.num_groups if piece == "grouped" else 1

        def load(tensor: Tensor) -> None:
            parts = tensor.unflatten(0, (num_groups, -1)).split([n // num_groups for n in self.pieces.values()], dim=1)
            for name, part in zip(self.pieces, parts, strict=True):
                self._load_piece(name, part.flatten(0, 1))

        return Slot((sum(self.pieces.values()), *tail), load)


class RowLinear(Layer):
    """y = x W^T + b with the inputs split over ranks; the partial sums meet in an all-reduce."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: torch.dtype,
        bias: bool = False,
        group: Group = SINGLE,
        method: Method | None = None,
    ) -> None:
        """Create this rank's share of the columns; rank 0 alone adds the bias."""
        super().__init__()
        self.shape = (out_features, in_features)
        self.group = group
        self.method: Method = method or Plain()
        self.share = group.share(in_features, "row-split inputs")
        self.method.create(self, out_features, self.share, dtype)
        self.bias = parameter(out_features, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., this rank's in_features) -> (..., out_features), equal on every rank."""
        return self.group.all_reduce(self.method.apply(self, x, self.bias if self.group.rank == 0 else None))

    def slot(self, parameter: str, piece: str | None = None) -> Slot:
        """Return the place of the whole weight or bias."""
        if parameter == "bias":
            return super().slot(parameter)
        start = self.group.rank * self.share
        return Slot(self.shape, lambda tensor: self.method.load(self, tensor.narrow(1, start, self.share), 0))
