"""The skinny product against its twin, `torch.nn.functional.linear`: interpreted on the CPU, compiled on the GPU.

Tolerances are relative to the largest output, against the twin in fp64 on the same rounded inputs. The kernel rounds
once, at the end: half a unit in the last place is 2e-3 in bf16 and 2.5e-4 in fp16, and each is allowed twice that and
some for the order of the sums; fp32 is its own accumulator. A gated product equals, bit for bit, the launches that
it replaces, and its twin within four times the tolerance of a product: two of them are multiplied.
"""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.paged import measure_error
from tests.kernels.skinny import GATED, INTERPRETED, TOLERANCES, Product, compare
from tests.messages import mentions
from tests.processes import run_command
from tilewise.kernels import linear, reference
from tilewise.kernels.triton import skinny
from tilewise.kernels.triton.product_config import MAX_ROWS, ProductConfig, choose_config, load_table
from tilewise.kernels.triton.skinny import decline, decline_gated, multiply
from tilewise.quant import Plain

KIB, NUM_SMS = 1 << 10, 108
# Of the 26B: qkv, o, gate and up, down, head. Then kin: K that only 128 divides, a narrow one, a vocabulary unpadded.
DECODE_SHAPES = [(8192, 6144), (6144, 6144), (32768, 6144), (6144, 16384), (92672, 6144)]
# Width, queries' and keys' widths, MLP of the family's decoders: the smallest, one whose K is an odd number of blocks,
# the smallest and the largest with head size 128.
KIN = [(896, 896, 128, 4864), (3584, 3584, 512, 18944), (1024, 2048, 1024, 3072), (8192, 8192, 1024, 29568)]
KIN_SHAPES = [
    shape
    for width, q, kv, inner in KIN
    for shape in ((q + 2 * kv, width), (width, q), (2 * inner, width), (width, inner), (151936, width))
]
SHAPES = [*DECODE_SHAPES, *KIN_SHAPES, (3200, 3200), (92553, 2048), (16, 128)]
COMPILED = [
    Product(m, n, k, dtype, config, has_bias)
    for dtype in ("bfloat16", "float16")
    for m in (1, 3, 16, 17, 64)
    for n, k, config, has_bias in (
        (1000, 1024, ProductConfig(16, 256, 1, 2, 4), False),
        (1001, 1152, ProductConfig(32, 128, 3, 4, 3), True),
        (777, 512, ProductConfig(64, 128, 3, 4, 3), True),  # four blocks in three shares: the last is empty
        (777, 2048, ProductConfig(64, 128, 1, 4, 2, weight_first=True), True),
        (1001, 1152, ProductConfig(128, 128, 3, 8, 2, weight_first=True), False),
        (2048, 6144, choose_config(m, 2048, 6144, 132), False),
    )
] + [
    Product(m, n, k, dtype, config, is_gated=True)
    for dtype in ("bfloat16", "float16")
    for m, n, k, config in (
        *GATED,
        *((m, 2050, k, config) for (m, _, k), config in load_table(132).gated.items()),
    )
]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


class Elsewhere(Tensor):
    """A tensor that says it is on the GPU; nothing may be computed with it."""

    device = torch.device("cuda", 0)


def make_elsewhere(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype).as_subclass(Elsewhere)  # a vocabulary of 2.4 GB, of which no page is touched


def says(reason: str | None, *told: object) -> bool:
    return re.search(mentions(*told), reason or "") is not None


def run_interpreted(repository: Path, *command: str) -> str:
    # In a process of its own: Triton reads the variable when it is imported, and it would hold for every test.
    paths = os.pathsep.join((str(repository / "src"), str(repository)))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = run_command([sys.executable, *command], cwd=repository, env=environment, check=True)
    return done.stdout.splitlines()[-1]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """Give the first GPU a capability; what is known of devices is forgotten before and after."""

    def pretend(major: int, minor: int) -> None:
        properties = SimpleNamespace(major=major, minor=minor, multi_processor_count=NUM_SMS)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        skinny.measure_device.cache_clear()

    yield pretend
    skinny.measure_device.cache_clear()


@pytest.fixture
def gpu_of_80(pretend: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(8, 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@needs_triton
def test_interpreted_kernels_equal_their_twins_and_repeat_their_bits(repository: Path) -> None:
    results = json.loads(run_interpreted(repository, "-m", "tests.kernels.skinny"))
    assert results.keys() == {product.name for product in INTERPRETED}
    allowed = {p.name: 0 if p.is_gated else TOLERANCES[p.dtype] for p in INTERPRETED}
    wrong = {name: results[name] for name in allowed if not results[name][0] <= allowed[name]}
    assert not wrong
    assert all(is_same for _, is_same in results.values())


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("product", COMPILED, ids=lambda product: product.name)
def test_compiled_kernel_equals_its_twin_and_repeats_its_bits(product: Product) -> None:
    error, is_same = compare(product, "cuda")
    assert error <= (0 if product.is_gated else TOLERANCES[product.dtype])
    assert is_same


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize(("n", "k"), [*DECODE_SHAPES, *KIN_SHAPES])
@pytest.mark.parametrize("m", [1, 3, 16, 17, 64])
def test_a_chosen_config_runs_on_this_gpu_and_equals_the_twin(m: int, n: int, k: int) -> None:
    x = torch.randn(m, k, device="cuda").bfloat16()
    weight = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        assert decline(x, weight) is None
        # In fp32: cuBLAS may add shares of K in bf16.
        assert measure_error(linear(x, weight), F.linear(x.float(), weight.float())) < TOLERANCES["bfloat16"]


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("m", [1, 16, 64, 65])
def test_swiglu_by_the_plain_method_equals_its_twin_on_this_gpu(m: int) -> None:
    layer = torch.nn.Module()
    with torch.device("cuda"):
        Plain().create(layer, 32768, 6144, torch.bfloat16)
    weight = layer.get_parameter("weight")
    weight.data.normal_(std=6144**-0.5)
    x = torch.randn(m, 6144, device="cuda").bfloat16()
    with torch.inference_mode():
        assert (decline_gated(x, weight) is None) == (m <= MAX_ROWS)
        expected = reference.silu_and_multiply(F.linear(x.float(), weight.float()).bfloat16())
        assert measure_error(Plain().apply_gated(layer, x), expected) < 4 * TOLERANCES["bfloat16"]


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("num_splits", [1, 4])
def test_a_replayed_graph_gives_the_bits_of_an_eager_call(num_splits: int) -> None:
    config = ProductConfig(64, 128, num_splits, 4, 3)
    x, weight = (torch.randn(rows, 2048, device="cuda").bfloat16() for rows in (5, 2049))
    multiply(x, weight, None, config)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = multiply(x, weight, None, config)
    for _ in range(2):
        x.copy_(torch.randn(5, 2048, device="cuda"))
        graph.replay()
        assert torch.equal(out, multiply(x, weight, None, config))


@pytest.mark.gpu
@needs_triton
def test_a_row_does_not_depend_on_the_others_of_its_tile() -> None:
    x, weight = (torch.randn(rows, 2048, device="cuda").bfloat16() for rows in (16, 2049))
    config = ProductConfig(32, 256, 2, 4, 3)
    assert torch.equal(multiply(x[:1], weight, None, config), multiply(x, weight, None, config)[:1])


@pytest.mark.gpu
@needs_triton
def test_leading_axes_and_strides_of_x_are_honoured_on_the_gpu() -> None:
    x = torch.randn(2, 2048, 3, device="cuda").bfloat16().transpose(1, 2)
    weight, bias = torch.randn(2048, 2048, device="cuda").bfloat16(), torch.randn(2048, device="cuda").bfloat16()
    with torch.inference_mode():
        assert decline(x, weight, bias) is None
        ours, expected = linear(x, weight, bias), F.linear(x.float(), weight.float(), bias.float())
    assert ours.shape == expected.shape == (2, 3, 2048)
    assert measure_error(ours, expected) < TOLERANCES["bfloat16"]


def test_on_the_cpu_linear_is_its_twin_with_gradients_and_leading_axes() -> None:
    x, weight, bias = torch.randn(2, 3, 128), torch.randn(5, 128, requires_grad=True), torch.randn(5)
    assert says(decline(x, weight, bias), "CUDA")
    out = linear(x, weight, bias)
    assert torch.equal(out, F.linear(x, weight, bias))
    out.sum().backward()
    assert weight.grad is not None


@needs_triton
@pytest.mark.usefixtures("gpu_of_80")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_decode_step_on_a_gpu_is_not_declined(dtype: torch.dtype) -> None:
    weight = make_elsewhere(4096, 1024, dtype=dtype)
    for rows in (1, MAX_ROWS):
        assert decline(make_elsewhere(rows, 1024, dtype=dtype), weight, make_elsewhere(4096, dtype=dtype)) is None


@pytest.mark.usefixtures("gpu_of_80")
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "bias_shape", "told"),
    [
        ((65, 1024), (4096, 1024), None, (65, 64)),
        ((5, 13, 1024), (4096, 1024), None, (65, 64)),
        ((0, 1024), (4096, 1024), None, (0, 64)),
        ((1, 1088), (4096, 1088), None, ("K=1088", 128)),
        ((1, 512), (4096, 1024), None, ("shapes",)),
        ((1, 1024), (4096, 1024), (1024,), ("shapes",)),
        ((1, 512), (512, 512), None, ("262144",)),
    ],
)
def test_shapes_are_declined_with_their_reason(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    told: tuple[object, ...],
) -> None:
    bias = None if bias_shape is None else make_elsewhere(*bias_shape)
    assert says(decline(make_elsewhere(*x_shape), make_elsewhere(*weight_shape), bias), *told)


@needs_triton
@pytest.mark.usefixtures("gpu_of_80")
def test_a_gated_product_is_declined_where_no_half_is_whole() -> None:
    x, wide = make_elsewhere(64, 6144), make_elsewhere(32768, 6144)
    assert decline_gated(x, wide) is None
    assert says(decline_gated(make_elsewhere(65, 6144), wide), 65, MAX_ROWS)
    assert says(decline_gated(x, make_elsewhere(32767, 6144)), 32767)
    assert decline_gated(x, make_elsewhere(1024, 6144)) is None, "though K has to be split"


def test_on_the_cpu_swiglu_is_its_twin() -> None:
    layer = torch.nn.Module()
    Plain().create(layer, 6, 128, torch.float32)
    weight = layer.get_parameter("weight")
    weight.data.normal_(std=0.1)
    x = torch.randn(2, 3, 128)
    gate, up = F.linear(x, weight).chunk(2, dim=-1)
    assert torch.equal(Plain().apply_gated(layer, x), F.silu(gate) * up)


@pytest.mark.usefixtures("gpu_of_80")
def test_dtypes_strides_devices_and_gradients_are_declined_with_their_reason() -> None:
    x, weight = make_elsewhere(1, 1024), make_elsewhere(4096, 1024)
    wide_x, wide_weight = make_elsewhere(1, 1024, dtype=torch.float32), make_elsewhere(4096, 1024, dtype=torch.float32)
    assert says(decline(wide_x, wide_weight), "torch.float32", "bfloat16", "float16")
    assert says(decline(x, wide_weight), "dtype", "device")
    assert says(decline(x, torch.zeros(4096, 1024, dtype=torch.float16)), "dtype", "device")
    assert says(decline(x, make_elsewhere(1024, 4096).t()), "weight", "contiguous")
    assert says(decline(x, weight.requires_grad_()), "gradients")
    with torch.inference_mode():
        assert decline(x, weight) is None or says(decline(x, weight), "triton")


@pytest.mark.usefixtures("gpu_of_80")
def test_devices_are_declined_with_their_reason(
    pretend: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = make_elsewhere(1, 1024), make_elsewhere(4096, 1024)
    pretend(7, 5)
    assert says(decline(x, weight), "7.5", "8.0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert says(decline(x, weight), "cuda:0")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert says(decline(x, weight), "CUDA")


@pytest.mark.parametrize(
    ("capability", "shared_kib"), [((8, 0), 163), ((8, 6), 99), ((8, 9), 99), ((9, 0), 227), ((99, 0), 99)]
)
def test_a_device_is_measured_by_its_own_properties(
    pretend: Callable[[int, int], None], capability: tuple[int, int], shared_kib: int
) -> None:
    pretend(*capability)
    assert skinny.measure_device(torch.device("cuda", 0)) == (capability, NUM_SMS, shared_kib * KIB)


@pytest.mark.parametrize("shared_kib", [99, 163, 227])
@pytest.mark.parametrize("num_sms", [24, 84, 108, 128, 132])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_configs_hold_any_number_of_rows_and_fit_shared_memory(n: int, k: int, num_sms: int, shared_kib: int) -> None:
    for m in range(1, MAX_ROWS + 1):
        config = choose_config(m, n, k, num_sms, shared_kib * KIB)
        rows = next(rows for rows in (16, 32, 64) if rows >= m)
        assert config.num_stages * (config.block_n + rows) * config.block_k * 2 <= shared_kib * KIB
        assert k % config.block_k == 0
        assert 1 <= config.num_splits <= k // config.block_k
        assert {config.block_n, config.block_k} <= {16, 32, 64, 128, 256, 512}
        assert config.num_warps in (1, 2, 4, 8)


@needs_triton
@pytest.mark.usefixtures("gpu_of_80")
@pytest.mark.parametrize(("n", "k"), KIN_SHAPES)
def test_every_product_of_a_decode_step_of_the_family_is_ours(n: int, k: int) -> None:
    weight, bias = make_elsewhere(n, k), make_elsewhere(n)
    for rows in (1, MAX_ROWS):
        assert decline(make_elsewhere(rows, k), weight, bias) is None


@pytest.mark.parametrize(("n", "k"), KIN_SHAPES)
def test_a_narrow_weight_is_cut_until_the_gpu_is_busy_or_no_more_is_worth_it(n: int, k: int) -> None:
    for num_sms in (84, 108, 132, 148):
        for m in range(1, MAX_ROWS + 1):
            config = choose_config(m, n, k, num_sms)
            num_tiles = -(-n // config.block_n)
            share = -(-k // config.block_k // config.num_splits) * config.block_k * config.block_n * 2
            assert share * config.num_splits < k * config.block_n * 2 + share, "no share is empty"
            is_busy = num_tiles * config.num_splits >= num_sms
            assert is_busy or config.num_splits == 8 or share < 128 * KIB
            assert config.num_splits == 1 or share >= 48 * KIB


def test_the_26b_on_a_gpu_that_was_not_measured_is_cut_as_ever() -> None:
    chosen = {(m, n, k): choose_config(m, n, k, 108, 163 * KIB) for m in (1, 32, 64) for n, k in DECODE_SHAPES[:2]}
    assert chosen == {
        (1, 8192, 6144): ProductConfig(64, 128, 1, 4, 4),
        (32, 8192, 6144): ProductConfig(64, 128, 1, 4, 3),
        (64, 8192, 6144): ProductConfig(64, 128, 1, 4, 2),
        (1, 6144, 6144): ProductConfig(32, 256, 1, 4, 3),
        (32, 6144, 6144): ProductConfig(64, 128, 2, 4, 3),
        (64, 6144, 6144): ProductConfig(64, 128, 2, 4, 2),
    }


@pytest.mark.parametrize(("n", "k"), DECODE_SHAPES)
def test_no_multiprocessor_of_a_large_gpu_is_left_without_a_program(n: int, k: int) -> None:
    for num_sms in (84, 108, 128):  # no measurement speaks for these, the rule does
        for m in range(1, MAX_ROWS + 1):
            config = choose_config(m, n, k, num_sms)
            assert -(-n // config.block_n) * config.num_splits >= num_sms


@pytest.mark.parametrize("is_gated", [False, True])
def test_every_line_of_the_tables_is_what_its_device_gets(is_gated: bool) -> None:
    for key, config in (load_table(132).gated if is_gated else load_table(132).plain).items():
        assert choose_config(*key, 132, 227 * KIB, is_gated) == config


@needs_triton
def test_the_benchmark_runs_dry_and_ends_in_a_line_of_json(repository: Path) -> None:
    line = json.loads(run_interpreted(repository, "benchmarks/skinny.py", "--dry"))
    assert line["benchmark"] == "skinny"
    assert line["best"]
    assert {result["is_gated"] for result in line["best"]} == {False, True}
    assert all(result["error"] < TOLERANCES["float32"] for result in line["best"])
