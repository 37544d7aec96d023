"""Attention blocks: the tower's, which sees a whole tile, and the decoder's, which writes and reads a KV cache."""

import torch
from torch import Tensor, nn

from tilewise import kernels
from tilewise.config import DecoderConfig, VisionConfig
from tilewise.kernels import AttentionBatch, HeadNorms
from tilewise.layers.linear import ColumnLinear, RowLinear
from tilewise.layers.norm import RMSNorm
from tilewise.parallel import SINGLE, Group


class TileAttention(nn.Module):
    """Full attention inside each tile; queries and keys may be RMS-normalised over the full width first.

    It is never split over ranks: 25 heads divide by no useful number. Ranks share the tiles instead.
    """

    def __init__(self, config: VisionConfig, dtype: torch.dtype) -> None:
        """Create the projections and, where the flavour has them, the q and k norms."""
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.qkv = ColumnLinear(width, {"q": width, "k": width, "v": width}, dtype=dtype, bias=config.use_qkv_bias)
        self.output = RowLinear(width, width, dtype=dtype, bias=True)
        self.q_norm = RMSNorm(width, config.qk_norm_eps, dtype) if config.use_qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width, config.qk_norm_eps, dtype) if config.use_qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, C) -> (N, P, C)."""
        qkv = self.qkv(x)
        if isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm):
            kernels.rms_norm_queries_and_keys_(qkv, self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)  # (N, P, H, D) each
        return self.output(kernels.attend_tiles(q, k, v).reshape(x.shape))


class CachedAttention(nn.Module):
    """Grouped-query attention over a paged cache. Source: Ainslie et al. 2023, "GQA", section 2.2."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, group: Group = SINGLE) -> None:
        """Create this rank's heads and, where the flavour has them, the norms that all heads share."""
        super().__init__()
        self.head_dim = config.head_dim
        width, groups = config.hidden_size, config.num_kv_heads
        q, kv = config.num_heads * self.head_dim, groups * self.head_dim
        pieces = {"q": q, "k": kv, "v": kv}
        has_bias = config.use_qkv_bias
        self.qkv = ColumnLinear(width, pieces, dtype=dtype, bias=has_bias, num_groups=groups, group=group)
        self.output = RowLinear(q, width, dtype=dtype, bias=config.use_output_bias, group=group)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps, dtype) if config.use_qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps, dtype) if config.use_qk_norm else nn.Identity()
        self.num_heads = self.qkv.shares["q"] // self.head_dim  # this rank's

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        batch: AttentionBatch,
        rows: Tensor | None = None,
    ) -> Tensor:
        """(T, C) -> (T, C), or the `rows` (B,) of it: (B, C).

        `cache` holds this layer's keys and values, (num_blocks, block_size, Hkv, D) each.
        """
        starts = any(chunk.start == 0 for chunk in batch.chunks)
        norms: HeadNorms | None = None
        if isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm):
            norms = HeadNorms(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)
        q, fresh = kernels.rope_and_write_kv(self.qkv(x), angles, *cache, batch.slots, self.num_heads, starts, norms)
        attended = kernels.attend_cached(q, fresh, *cache, batch).flatten(1)
        return self.output(attended if rows is None else attended[rows])
