"""The tensors behind the bookkeeping: KV blocks of every layer, and the pool of encoded tiles."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.config import ResolvedConfig


@dataclass(frozen=True, slots=True)
class CacheTensors:
    """Shapes: k, v: (layers, num_blocks, block_size, Hkv, D) · tiles: (num_rows, tokens_per_tile, C)."""

    k: Tensor
    v: Tensor
    tiles: Tensor


def create_caches(
    config: ResolvedConfig, num_blocks: int, num_tile_rows: int, dtype: torch.dtype, device: torch.device
) -> CacheTensors:
    """Allocate both pools.

    Blocks start uninitialised: nothing reads a slot that was not written. Tiles likewise.
    """
    decoder = config.model.decoder
    heads = decoder.num_kv_heads // config.tensor_parallel_size
    shape = (decoder.num_layers, num_blocks, config.block_size, heads, decoder.head_dim)
    tiles = (num_tile_rows, config.model.tokens_per_tile, decoder.hidden_size)
    return CacheTensors(
        k=torch.empty(shape, dtype=dtype, device=device),
        v=torch.empty(shape, dtype=dtype, device=device),
        tiles=torch.empty(tiles, dtype=dtype, device=device),
    )
