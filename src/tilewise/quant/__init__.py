"""Quantisation methods: how a linear layer creates, loads and applies its weight. One file a method.

Here: parameters of a weight, and the operations of `kernels` that multiply by it.
Not here: layers, shapes over ranks, files.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from tilewise.quant.plain import Plain

__all__ = ["Method", "Plain"]


class Method(Protocol):
    """What a linear layer asks of its quantisation; the layer keeps shapes, ranks and biases to itself."""

    def create(self, layer: nn.Module, rows: int, columns: int, dtype: torch.dtype) -> None:
        """Register the parameters of a (rows, columns) weight on `layer`, on torch's current device."""
        ...

    def load(self, layer: nn.Module, part: Tensor, first_row: int) -> None:
        """Put `part` (n, columns) at rows [first_row, first_row + n), quantising on the way if need be."""
        ...

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply: x (..., columns) -> (..., rows)."""
        ...

    def apply_gated(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Multiply by gate's rows and up's below them and apply SwiGLU: x (..., columns) -> (..., rows / 2)."""
        ...
