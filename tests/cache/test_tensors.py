from dataclasses import replace

import pytest
import torch

from tests.engine.tiny import MODEL
from tilewise.cache.tensors import create_caches
from tilewise.config import DeviceConfig, EngineConfig, resolve
from tilewise.plan import plan_memory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_pools_take_the_bytes_that_the_plan_says(dtype: str) -> None:
    resolved = resolve(EngineConfig(dtype=dtype, image_cache_bytes=100_000), MODEL, DeviceConfig("cpu"))
    plan = plan_memory(resolved)
    caches = create_caches(resolved, 7, plan.num_tile_rows, getattr(torch, dtype), torch.device("cpu"))
    assert caches.k.shape == caches.v.shape == (2, 7, 64, 2, 16)
    assert caches.k.nbytes + caches.v.nbytes == 7 * plan.kv_block == 7 * 64 * resolved.kv_bytes_per_token
    assert caches.tiles.shape == (plan.num_tile_rows, MODEL.tokens_per_tile, 32)
    assert caches.tiles.nbytes == plan.image_cache <= 100_000


def test_a_step_can_always_place_its_tiles() -> None:
    tiny = resolve(EngineConfig(image_cache_bytes=0, max_prefill_tiles=9), MODEL, DeviceConfig("cpu"))
    assert plan_memory(tiny).num_tile_rows == 9
    assert plan_memory(replace(tiny, max_step_tiles=1)).num_tile_rows == 1
