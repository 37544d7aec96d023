"""The plain twins of the small operations, index by index."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from tilewise.kernels import HeadNorms, apply_rope, pixel_shuffle, rope_and_write_kv, silu_and_multiply, write_kv


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("step", [2, 4])
def test_pixel_shuffle_folds_neighbouring_positions_into_channels(version: str, step: int) -> None:
    side, width = 8, 3
    x = torch.arange(2 * side * side * width).view(2, side, side, width)
    out = pixel_shuffle(x, 1 / step, version)
    assert out.shape == (2, side // step, side // step, width * step**2)
    for row, column in product(range(side // step), repeat=2):
        block = x[:, row * step : (row + 1) * step, column * step : (column + 1) * step]
        place = (row, column) if version == "v2" else (column, row)
        assert torch.equal(out[:, *place], block.flatten(1))


def test_swiglu_gates_the_right_half_with_the_left() -> None:
    gate, up = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(silu_and_multiply(torch.cat((gate, up), dim=-1)), F.silu(gate) * up)


def test_rotation_turns_half_split_pairs_by_their_angle() -> None:
    x = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(0))
    angles = torch.rand(4, 3, generator=torch.Generator().manual_seed(1)) * 6
    pairs = torch.complex(x[..., :3], x[..., 3:]) * torch.polar(torch.ones(4, 1, 3), angles[:, None])
    torch.testing.assert_close(apply_rope(x, angles.cos(), angles.sin()), torch.cat((pairs.real, pairs.imag), dim=-1))


def test_keys_and_values_go_to_their_slots_and_nowhere_else() -> None:
    k_cache, v_cache = torch.zeros(3, 4, 1, 2), torch.zeros(3, 4, 1, 2)
    k, v = torch.ones(2, 1, 2), torch.full((2, 1, 2), 2.0)
    write_kv(k, v, k_cache, v_cache, torch.tensor([9, 3]))
    for cache, value in ((k_cache, 1.0), (v_cache, 2.0)):
        assert torch.equal(cache.flatten(0, 1).nonzero()[:, 0].unique(), torch.tensor([3, 9]))
        assert cache[2, 1].eq(value).all()
        assert cache[0, 3].eq(value).all()


def test_norms_of_heads_come_before_the_rotation_and_spare_the_values() -> None:
    generator = torch.Generator().manual_seed(0)
    qkv, (q_weight, k_weight) = torch.randn(5, 6 * 8, generator=generator), torch.rand(2, 8, generator=generator)
    angles = torch.randn(5, 4, generator=generator)
    cos, sin = angles.cos(), angles.sin()
    caches = torch.zeros(2, 4, 2, 8), torch.zeros(2, 4, 2, 8)
    slots = torch.arange(5)
    norms = HeadNorms(q_weight, k_weight, 0.5)
    q, fresh = rope_and_write_kv(qkv, (cos, sin), *caches, slots, 2, returns_fresh=True, norms=norms)
    assert fresh is not None
    k, v = fresh
    heads = qkv.view(5, 6, 8)
    scale = torch.rsqrt(heads.square().mean(-1, keepdim=True) + 0.5)
    assert torch.equal(v, heads[:, 4:])
    torch.testing.assert_close(q, apply_rope(heads[:, :2] * scale[:, :2] * q_weight, cos, sin))
    torch.testing.assert_close(k, apply_rope(heads[:, 2:4] * scale[:, 2:4] * k_weight, cos, sin))
    assert torch.equal(caches[0].flatten(0, 1)[:5], k)
