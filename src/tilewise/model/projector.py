"""The MLP that carries a picture's positions into the language model's space."""

import torch
from torch import Tensor, nn

from tilewise.config import ModelConfig
from tilewise.layers.mlp import GeluMLP
from tilewise.layers.norm import LayerNorm
from tilewise.layers.pixel_shuffle import PixelShuffle

# torch's own default, which the official code leaves in place.
_NORM_EPS = 1e-5


class Projector(nn.Module):
    """Pixel shuffle, LayerNorm, Linear, GELU, Linear. Source: InternVL 1.5, section 3.1; official `mlp1`."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        """Create the norm and both matrices."""
        super().__init__()
        width, out = config.projector_input_size, config.decoder.hidden_size
        side = config.vision.image_size // config.vision.patch_size
        self.shuffle = PixelShuffle(side, config.downsample_ratio, config.pixel_shuffle_version)
        self.norm = LayerNorm(width, _NORM_EPS, dtype)
        self.mlp = GeluMLP(width, out, out, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, C) -> (N, P * ratio^2, decoder width)."""
        return self.mlp(self.norm(self.shuffle(x)))
