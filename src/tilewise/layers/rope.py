"""Rotary position embedding: one table of angles for the engine's life."""

import torch
from torch import Tensor, nn


class Rope(nn.Module):
    """Cosines and sines of every position up to `length`, in fp32: bf16 here alone moves a logit by 4e-2.

    Source: Su et al. 2021, "RoFormer", section 3.4.2. `position_scale` < 1 is linear scaling (Chen et al.
    2023, "Extending context window via position interpolation"); dynamic scaling arrives as a larger `base`.
    """

    def __init__(self, head_dim: int, length: int, base: float, position_scale: float = 1.0) -> None:
        """Compute the table, in fp64 and rounded once.

        Shapes: cos, sin: (length, head_dim / 2) fp32
        """
        super().__init__()
        self.length = length
        pairs = torch.arange(0, head_dim, 2, dtype=torch.float64)
        frequencies = base ** -(pairs / head_dim)
        angles = torch.outer(torch.arange(length, dtype=torch.float64) * position_scale, frequencies)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(T,) -> two (T, head_dim / 2) fp32."""
        return self.cos[positions], self.sin[positions]
