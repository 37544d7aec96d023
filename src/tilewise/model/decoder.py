"""One decoder for every language model of the family; what differs between them is data in `families`.

InternLM2, Qwen2 and Qwen3 share the computation: pre-norm, rotary grouped-query attention, SwiGLU. Where they differ,
a field of `DecoderConfig` says so. A family says how its checkpoint calls the tensors, and which place each has here.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tilewise.config import DecoderConfig
from tilewise.layers.attention import AttentionBatch, CachedAttention
from tilewise.layers.embedding import Head, TokenEmbedding
from tilewise.layers.mlp import SwigluMLP
from tilewise.layers.norm import RMSNorm
from tilewise.layers.rope import Rope
from tilewise.model.families import FAMILIES
from tilewise.parallel import SINGLE, Group


class DecoderLayer(nn.Module):
    """Attention and SwiGLU, each behind its norm and added to the stream."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, group: Group) -> None:
        """Create this rank's part."""
        super().__init__()
        width = config.hidden_size
        self.attention_norm = RMSNorm(width, config.norm_eps, dtype)
        self.attention = CachedAttention(config, dtype, group)
        self.mlp_norm = RMSNorm(width, config.norm_eps, dtype)
        self.mlp = SwigluMLP(width, config.intermediate_size, dtype, group)

    def forward(
        self,
        x: Tensor,
        branch: Tensor | None,
        angles: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        batch: AttentionBatch,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Take the stream with the last branch of the layer before, and return the same of this layer: (T, C) each.

        A branch is added in one operation with the norm that follows it. With `rows` (B,) only those go on behind the
        attention: (B, C) each.
        """
        normed, x = self.attention_norm.add(x, branch)
        x = x if rows is None else x[rows]
        normed, x = self.mlp_norm.add(x, self.attention(normed, angles, cache, batch, rows))
        return x, self.mlp(normed)


class Decoder(nn.Module):
    """A language model over a paged cache."""

    def __init__(self, config: DecoderConfig, rope: Rope, dtype: torch.dtype, group: Group = SINGLE) -> None:
        """Create the parameters of `config`."""
        super().__init__()
        self.config = config
        head = Head(config.vocab_size, config.hidden_size, dtype, config.num_logits)
        tied = head if config.is_head_tied else None
        self.embedding = TokenEmbedding(config.vocab_size, config.hidden_size, dtype, tied)
        self.layers = nn.ModuleList(DecoderLayer(config, dtype, group) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, dtype)
        self.head = head
        self.rope = rope

    def forward(
        self, x: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, rows: Tensor | None = None
    ) -> Tensor:
        """Run all layers; with `rows` only those tokens are wanted, and the last layer computes no more of the others.

        Shapes: x: (T, C) embeddings · k_cache, v_cache: (layers, num_blocks, block_size, Hkv, D) · rows: (B,) int64
            -> (T, C), or (B, C)
        """
        angles = self.rope(batch.positions)
        branch: Tensor | None = None
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            wanted = rows if number == last else None
            x, branch = layer(x, branch, angles, (k_cache[number], v_cache[number]), batch, wanted)
        return x if branch is None else x + branch

    def logits(self, x: Tensor) -> Tensor:
        """(B, C) hidden rows -> (B, num_logits) fp32."""
        return self.head(self.norm(x))

    def names(self) -> Iterator[tuple[str, str, str | None]]:
        """Yield (the family's name, module path, piece) of every module that holds tensors of its own."""
        family = FAMILIES[self.config.family]
        for stored, module in family.ends.items():
            if module == "head" and self.config.is_head_tied:
                continue
            yield stored, module, None
        for number in range(self.config.num_layers):
            for stored, (module, piece) in family.layer.items():
                yield f"{family.layers}.{number}.{stored}", f"layers.{number}.{module}", piece
