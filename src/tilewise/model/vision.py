"""InternViT as flags: 6B (RMSNorm, q/k norm, no qkv bias) and 300M (LayerNorm, qkv bias) are one class.

Source: Chen et al. 2024, "How far are we to GPT-4V?" (InternVL 1.5), section 3.1, and the official config.json.
"""

import math

import torch
from torch import Tensor, nn

from tilewise.config import VisionConfig
from tilewise.layers.attention import TileAttention
from tilewise.layers.linear import ColumnLinear
from tilewise.layers.mlp import GeluMLP
from tilewise.layers.norm import LayerNorm, RMSNorm
from tilewise.layers.slot import Slot, parameter

_NORMS = {"rms_norm": RMSNorm, "layer_norm": LayerNorm}


class PatchProjection(ColumnLinear):
    """A convolution whose stride is its kernel: a matrix product over unfolded patches."""

    def slot(self, parameter: str, piece: str | None = None) -> Slot:
        """As `ColumnLinear.slot`; the weight comes as (C, 3, size, size)."""
        slot = super().slot(parameter, piece)
        if parameter == "bias":
            return slot
        size = math.isqrt(self.in_features // 3)
        return Slot((slot.shape[0], 3, size, size), lambda tensor: slot.load(tensor.flatten(1)))


class PatchEmbedding(nn.Module):
    """Cut a tile into patches, project them, put the class token first and add learned positions."""

    def __init__(self, config: VisionConfig, dtype: torch.dtype) -> None:
        """Create projection, class token and positions (1 + P, C)."""
        super().__init__()
        self.patch_size, self.side = config.patch_size, config.image_size // config.patch_size
        width = config.hidden_size
        self.projection = PatchProjection(3 * config.patch_size**2, {"patch": width}, dtype=dtype, bias=True)
        self.class_token = parameter(1, 1, width, dtype=dtype)
        self.positions = parameter(1, 1 + config.num_patches, width, dtype=dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, 1 + P, C)."""
        size, side = self.patch_size, self.side
        patches = pixels.unflatten(3, (side, size)).unflatten(2, (side, size))  # (N, 3, rows, size, columns, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (N, P, 3 * size * size)
        class_token = self.class_token.expand(len(pixels), -1, -1)
        return torch.cat((class_token, self.projection(patches)), dim=1) + self.positions


class VisionLayer(nn.Module):
    """Pre-norm transformer layer with layer scale on both branches. Source: Touvron et al. 2021, "CaiT", eq. 2."""

    def __init__(self, config: VisionConfig, dtype: torch.dtype) -> None:
        """Create both branches."""
        super().__init__()
        width, norm = config.hidden_size, _NORMS[config.norm_type]
        self.norm1 = norm(width, config.norm_eps, dtype)
        self.attention = TileAttention(config, dtype)
        self.scale1 = parameter(width, dtype=dtype)
        self.norm2 = norm(width, config.norm_eps, dtype)
        self.mlp = GeluMLP(width, config.intermediate_size, width, dtype)
        self.scale2 = parameter(width, dtype=dtype)

    def forward(
        self, x: Tensor, branch: Tensor | None = None, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take the stream with the last branch of the layer before and its scale, and return the same of this layer.

        A branch is added, times its scale, in one operation with the norm that follows it.

        Shapes: x, branch: (N, 1 + P, C) · scale: (C,)
        """
        normed, x = self.norm1.add(x, branch, scale)
        normed, x = self.norm2.add(x, self.attention(normed), self.scale1)
        return x, self.mlp(normed), self.scale2


class VisionTower(nn.Module):
    """InternViT up to `select_layer`; layers behind it are neither built nor run, but their tensors are known."""

    def __init__(self, config: VisionConfig, select_layer: int, dtype: torch.dtype) -> None:
        """Build the layers that `select_layer`, an index into [embeddings, layer 1, …], needs."""
        super().__init__()
        self.num_used_layers = select_layer % (config.num_layers + 1)
        self.embedding = PatchEmbedding(config, dtype)
        self.layers = nn.ModuleList(VisionLayer(config, dtype) for _ in range(self.num_used_layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, P, C), class token dropped; there is no final norm."""
        x = self.embedding(pixels)
        branch: Tensor | None = None
        scale: Tensor | None = None
        for layer in self.layers:
            x, branch, scale = layer(x, branch, scale)
        if branch is None or scale is None:
            return x[:, 1:]
        return x[:, 1:] + branch[:, 1:] * scale
