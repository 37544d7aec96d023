"""The MLP that carries a picture's positions into the language model's space."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilewise import kernels
from tilewise.config import ModelConfig
from tilewise.layers.linear import ColumnLinear, RowLinear
from tilewise.layers.norm import LayerNorm

# torch's own default, which the official code leaves in place.
_NORM_EPS = 1e-5


class Projector(nn.Module):
    """Pixel shuffle, LayerNorm, Linear, GELU, Linear. Source: InternVL 1.5, section 3.1; official `mlp1`."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        """Create the norm and both matrices."""
        super().__init__()
        width, out = config.projector_input_size, config.decoder.hidden_size
        self.side = config.vision.image_size // config.vision.patch_size
        self.ratio, self.version = config.downsample_ratio, config.pixel_shuffle_version
        self.norm = LayerNorm(width, _NORM_EPS, dtype)
        self.up = ColumnLinear(width, {"up": out}, dtype=dtype, bias=True)
        self.down = RowLinear(out, out, dtype=dtype, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, C) -> (N, P * ratio^2, decoder width)."""
        grid = x.unflatten(1, (self.side, self.side))
        positions = kernels.pixel_shuffle(grid, self.ratio, self.version).flatten(1, 2)
        return self.down(F.gelu(self.up(self.norm(positions))))
