"""No quantisation: a weight is a matrix in the model's dtype."""

import torch
from torch import Tensor, nn

from tilewise.kernels import linear, linear_gated


class Plain:
    """The method that every other one is measured against."""

    def create(self, layer: nn.Module, rows: int, columns: int, dtype: torch.dtype) -> None:
        """Give `layer` its parameters: weight (rows, columns)."""
        layer.weight = nn.Parameter(torch.empty(rows, columns, dtype=dtype), requires_grad=False)

    def load(self, layer: nn.Module, part: Tensor, first_row: int) -> None:
        """Put `part` (n, columns), already this rank's share, at rows [first_row, first_row + n)."""
        layer.get_parameter("weight").data[first_row : first_row + part.shape[0]].copy_(part)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply: x (..., columns) -> (..., rows)."""
        return linear(x, layer.get_parameter("weight"), bias)

    def apply_gated(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Multiply by gate and up and apply SwiGLU: x (..., columns) -> (..., rows / 2)."""
        return linear_gated(x, layer.get_parameter("weight"))
