"""Linear layers that are split over ranks, fuse several checkpoint tensors in one weight, and load themselves.

A weight's rows are a sequence of named pieces. Of each piece a rank keeps an equal share, so that the share
of the fused weight is again the fused weight of the shares:

    rank 0 | q[:half] | k[:half] | v[:half] |        rank 1 | q[half:] | k[half:] | v[half:] |
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tilewise.layers.slot import Slot, whole
from tilewise.parallel import SINGLE, Group
from tilewise.quant import Method, Plain


class ColumnLinear(nn.Module):
    """y = x W^T + b with the outputs split over ranks; every rank sees all of x."""

    def __init__(
        self,
        in_features: int,
        pieces: Mapping[str, int],
        *,
        dtype: torch.dtype,
        bias: bool = False,
        group: Group = SINGLE,
        method: Method | None = None,
    ) -> None:
        """Create the weight of `pieces` (name -> rows over all ranks), in order."""
        super().__init__()
        self.in_features = in_features
        self.pieces = dict(pieces)
        self.group = group
        self.method: Method = method or Plain()
        self.shares = {name: group.share(rows, name) for name, rows in pieces.items()}
        rows = sum(self.shares.values())
        self.method.create(self, rows, in_features, dtype)
        self.bias = nn.Parameter(torch.empty(rows, dtype=dtype), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., this rank's rows)."""
        return self.method.apply(self, x, self.bias)

    def _first_row(self, piece: str) -> int:
        names = list(self.shares)
        return sum(self.shares[name] for name in names[: names.index(piece)])

    def _load_piece(self, piece: str, tensor: Tensor) -> None:
        share = self.shares[piece]
        part = tensor.narrow(0, self.group.rank * share, share)
        first = self._first_row(piece)
        if tensor.dim() == 1:
            assert self.bias is not None
            self.bias.data[first : first + share].copy_(part)
        else:
            self.method.load(self, part, first)

    def slot(self, parameter: str, piece: str | None = None) -> Slot:
        """Return the place of `piece`'s weight or bias; without a piece, of all pieces one after the other."""
        tail = (self.in_features,) if parameter == "weight" else ()
        if piece is not None:
            return Slot((self.pieces[piece], *tail), lambda tensor: self._load_piece(piece, tensor))

        def load(tensor: Tensor) -> None:
            for name, part in zip(self.pieces, tensor.split(list(self.pieces.values())), strict=True):
                self._load_piece(name, part)

        return Slot((sum(self.pieces.values()), *tail), load)


class QKVLinear(ColumnLinear):
    """The fused projection to queries, keys and values; `grouped` loads InternLM2's interleaved `wqkv`."""

    def __init__(
        self,
        in_features: int,
        heads: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        bias: bool = False,
        group: Group = SINGLE,
        method: Method | None = None,
    ) -> None:
        """`heads` is (query heads, KV heads, head size) over all ranks."""
        self.heads = heads
        num_heads, num_kv_heads, head_dim = heads
        pieces = {"q": num_heads * head_dim, "k": num_kv_heads * head_dim, "v": num_kv_heads * head_dim}
        super().__init__(in_features, pieces, dtype=dtype, bias=bias, group=group, method=method)

    def slot(self, parameter: str, piece: str | None = None) -> Slot:
        """As `ColumnLinear.slot`; `grouped` takes [query heads, key, value] of each KV head in turn."""
        if piece != "grouped":
            return super().slot(parameter, piece)
        num_heads, num_kv_heads, head_dim = self.heads
        per_group = num_heads // num_kv_heads

        def load(tensor: Tensor) -> None:
            groups = tensor.reshape(num_kv_heads, per_group + 2, head_dim, *tensor.shape[1:])
            parts = {"q": groups[:, :per_group], "k": groups[:, per_group], "v": groups[:, per_group + 1]}
            for name, part in parts.items():
                self._load_piece(name, part.reshape(self.pieces[name], *tensor.shape[1:]))

        return Slot(super().slot(parameter).shape, load)


class RowLinear(nn.Module):
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
        self.method.create(self, out_features, group.share(in_features, "row-split inputs"), dtype)
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., this rank's in_features) -> (..., out_features), equal on every rank."""
        return self.group.all_reduce(self.method.apply(self, x, self.bias if self.group.rank == 0 else None))

    def slot(self, parameter: str, piece: str | None = None) -> Slot:
        """Return the place of the whole weight or bias."""
        assert piece is None
        in_features = self.shape[1]
        if parameter == "bias":
            assert self.bias is not None
            return whole(self.bias)
        share = in_features // self.group.size

        def load(tensor: Tensor) -> None:
            self.method.load(self, tensor.narrow(1, self.group.rank * share, share), 0)

        return Slot(self.shape, load)
