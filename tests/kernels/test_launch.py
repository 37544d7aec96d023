"""Programmatic dependent launch changes when a kernel's programs start, and nothing else."""

import importlib.util
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tilewise import kernels
from tilewise.kernels.optimisations import Optimisation, without
from tilewise.kernels.triton import launch

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
WIDTH, HEADS, KV_HEADS, DIM, LAYERS, BLOCK_SIZE = 2048, 16, 4, 128, 24, 64
CONTEXT = 300


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Lets a test choose the device's; what is known of devices is forgotten before and after."""
    launch.can_depend.cache_clear()
    yield monkeypatch
    launch.can_depend.cache_clear()


@pytest.mark.parametrize(("found", "is_dependent"), [((8, 9), False), ((9, 0), True), ((12, 0), True)])
def test_small_steps_depend_from_capability_9_on(
    capability: pytest.MonkeyPatch, found: tuple[int, int], is_dependent: bool
) -> None:
    capability.setattr(torch.cuda, "get_device_capability", lambda device: found)
    capability.setattr(torch.version, "cuda", "13.0")
    options = launch.depend(torch.device("cuda", 0), 1)
    assert options == ({"IS_DEPENDENT": True, "launch_pdl": True} if is_dependent else {"IS_DEPENDENT": False})
    assert launch.depend(torch.device("cuda", 0), 17) == {"IS_DEPENDENT": False}


def test_nothing_depends_where_dependent_launches_are_left_out(capability: pytest.MonkeyPatch) -> None:
    capability.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    capability.setattr(torch.version, "cuda", "13.0")
    with without(Optimisation.DEPENDENT_LAUNCHES):
        assert not launch.depend(torch.device("cuda", 0), 1)["IS_DEPENDENT"]
    assert launch.depend(torch.device("cuda", 0), 1)["IS_DEPENDENT"]


def test_nothing_depends_on_a_cpu() -> None:
    assert launch.depend(torch.device("cpu"), 1) == {"IS_DEPENDENT": False}


def test_nothing_depends_where_cuda_is_but_a_name(capability: pytest.MonkeyPatch) -> None:
    capability.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    capability.setattr(torch.version, "cuda", None)
    assert launch.depend(torch.device("cuda", 0), 1) == {"IS_DEPENDENT": False}


def run_layers(x: Tensor, weights: list[tuple[Tensor, ...]], cache: tuple[Tensor, Tensor], step: Tensor) -> Tensor:
    """Layers of a decode step that all write and read one cache, so that every kernel depends on all before it."""
    num_rows = len(x)
    angles = torch.ones(num_rows, DIM // 2, device=x.device), torch.zeros(num_rows, DIM // 2, device=x.device)
    table = torch.arange(num_rows * 5, device=x.device, dtype=torch.int32).view(num_rows, 5)
    lengths = torch.full((num_rows,), CONTEXT, device=x.device, dtype=torch.int32)
    slots = torch.arange(num_rows, device=x.device) * 5 * BLOCK_SIZE + CONTEXT - 1
    batch = kernels.AttentionBatch(slots, slots, num_rows, table, lengths)
    branch = step.expand_as(x).contiguous()
    norm = torch.ones(WIDTH, device=x.device, dtype=x.dtype)
    x = kernels.rms_norm(x, norm, 1e-5)
    for qkv, output, gate_up, down in weights:
        normed, x = kernels.add_rms_norm(x, branch, norm, 1e-5)
        q, _ = kernels.rope_and_write_kv(kernels.linear(normed, qkv), angles, *cache, slots, HEADS)
        attended = kernels.attend_cached(q, None, *cache, batch).flatten(1)
        normed, x = kernels.add_rms_norm(x, kernels.linear(attended, output), norm, 1e-5)
        branch = kernels.linear(kernels.linear_gated(normed, gate_up), down)
    return x + branch


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("num_rows", [1, 16])
def test_a_captured_step_of_dependent_kernels_gives_the_bits_of_one_without(num_rows: int) -> None:
    if not launch.depend(torch.device("cuda", torch.cuda.current_device()), num_rows)["IS_DEPENDENT"]:
        pytest.skip("no kernel depends on this GPU")
    torch.manual_seed(0)
    shapes = ((HEADS + 2 * KV_HEADS) * DIM, WIDTH), (WIDTH, HEADS * DIM), (4 * WIDTH, WIDTH), (WIDTH, 2 * WIDTH)
    weights = [
        tuple(0.02 * torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes) for _ in range(LAYERS)
    ]
    k_cache, v_cache = torch.randn(2, 5 * num_rows, BLOCK_SIZE, KV_HEADS, DIM, device="cuda").bfloat16()
    cache = k_cache, v_cache
    x, step = (torch.randn(shape, device="cuda").bfloat16() for shape in ((num_rows, WIDTH), (1, WIDTH)))

    @torch.inference_mode()
    def replay_captured() -> list[Tensor]:
        run_layers(x, weights, cache, step)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run_layers(x, weights, cache, step)
        outs: list[Tensor] = []
        for number in range(20):
            step.fill_(number / 10)
            graph.replay()
            outs.append(out.clone())
        return outs

    with without(Optimisation.DEPENDENT_LAUNCHES):
        plain = replay_captured()
    dependent = replay_captured()
    assert all(torch.equal(one, other) for one, other in zip(plain, dependent, strict=True))
    assert not torch.equal(plain[0], plain[1])
