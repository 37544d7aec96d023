"""Every Triton kernel compiles for every generation of GPU that is served, within its shared memory; no GPU needed."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from tilewise.kernels.triton import activation, norm, rope, skinny
from tilewise.kernels.triton import decode_attention as attention
from tilewise.kernels.triton import prefill_attention as prefill
from tilewise.kernels.triton import resample as triton_resample
from tilewise.kernels.triton.product_config import load_table

# Bytes of shared memory that one program may take, by compute capability. Source: CUDA C++ Programming Guide, table of
# technical specifications.
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}


@dataclass(frozen=True)
class Case:
    """A kernel, the types of its arguments, its constants and its launch options."""

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, int | bool]


def attention_cases() -> list[Case]:
    strides = ("q_stride", "out_stride", "table_stride", "kv_block_stride", "kv_token_stride", "kv_head_stride")
    types = {
        **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), "*bf16"),
        **dict.fromkeys(("table_ptr", "lengths_ptr"), "*i32"),
        "scale": "fp32",
        **dict.fromkeys(strides, "i32"),
    }
    shared = {"partial_ptr": "*fp32", "stats_ptr": "*fp32", "arrivals_ptr": "*i32"}
    cases: list[Case] = []
    for splits, group, dim, block_size in (
        *((16, 6, 128, 64), (2, 7, 128, 128), (16, 1, 64, 64), (1, 6, 128, 64)),
        *((64, 7, 64, 64), (64, 8, 128, 64), (64, 6, 128, 64), (16, 2, 32, 64), (8, 5, 128, 64), (4, 4, 128, 16)),
    ):
        own = {"NUM_SPLITS": splits, "MERGED_SPLITS": min(splits, 16), "GROUP": group, "DIM": dim, "BLOCK": block_size}
        constants = {**own, "ROWS": 16, "MERGED_ROWS": 1 << (group - 1).bit_length()}
        options = {"num_stages": attention.choose_num_stages(torch.empty(0, block_size, 8, dim, dtype=torch.bfloat16))}
        absent = dict.fromkeys(shared) if splits == 1 else {}
        given = types if splits == 1 else {**types, **shared}
        constants |= absent
        cases.append(Case(f"attend_split {own}", attention.kernel(), given, constants, options))
    return cases


def skinny_cases(capability: int) -> list[Case]:
    multiply_share = skinny.kernel()
    scalars = dict.fromkeys(("num_rows", "n", "k"), "i32")
    tensors = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "out_ptr"), "*bf16")
    shared = {"shares_ptr": "*fp32", "arrivals_ptr": "*i32"}
    cases: list[Case] = []
    kinds: set[tuple[int, skinny.ProductConfig, bool]] = set()
    # And of the family's narrowest and widest decoder, for which there is only the rule.
    by_rule = [(m, n, k) for m in (1, 32, 64) for n, k in ((896, 896), (896, 4864), (8192, 29568))]
    for is_gated, table in ((False, load_table(132).plain), (True, load_table(132).gated)):
        for m, n, k in [*table, *by_rule]:
            config = skinny.choose_config(m, n, k, 132, SHARED_BYTES[capability], is_gated)
            kinds.add((skinny.pad_rows(m), replace(config, num_splits=1), is_gated))
    for rows, config, is_gated in sorted(kinds, key=str):
        for cut in (config, replace(config, num_splits=4)):
            options = skinny.launch_options(rows, cut, None if is_gated else torch.zeros(1), is_gated)
            constants = {name: value for name, value in options.items() if name.isupper()}
            launch = {name: value for name, value in options.items() if not name.isupper()}
            constants |= dict.fromkeys(shared) if cut.num_splits == 1 else {}
            types = tensors | scalars | (shared if cut.num_splits > 1 else {})
            name = f"multiply_share by {rows} rows, {cut}{', gated' if is_gated else ''}"
            cases.append(Case(name, multiply_share, types, constants, launch))
    return cases


def pixel_cases() -> list[Case]:
    one_pass, normalize = triton_resample.kernels()
    sizes = ("source", "target", "num_taps", "row_size", "tile_height", "tile_row_size")
    types = {"image_ptr": "*u8", "table_ptr": "*i32", "out_ptr": "*u8", **dict.fromkeys(sizes, "i32")}
    constants = {"BITS": 22, "HALF": 1 << 21, "BLOCK": 512}
    cases = [
        Case(
            f"resample, horizontal: {is_horizontal}", one_pass, types, {**constants, "IS_HORIZONTAL": is_horizontal}, {}
        )
        for is_horizontal in (False, True)
    ]
    constants = {"MEAN": (0.485, 0.456, 0.406), "STD": (0.229, 0.224, 0.225), "PIXELS": 448 * 448, "BLOCK": 512}
    for dtype in ("bf16", "fp16", "fp32"):
        types = {"tiles_ptr": "*u8", "out_ptr": f"*{dtype}"}
        cases.append(Case(f"normalize to {dtype}", normalize, types, constants, {}))
    return cases


def prefill_cases() -> list[Case]:
    strides = ("q_stride", "out_stride", "table_stride", "kv_block_stride", "kv_token_stride", "kv_head_stride")
    cases: list[Case] = []
    for dtype, block_size, num_stages, group, dim in (
        *(("bf16", 64, 2, 6, 128), ("bf16", 128, 1, 6, 128), ("fp16", 16, 2, 6, 128), ("fp32", 64, 1, 6, 128)),
        *(("bf16", 64, 2, 7, 64), ("bf16", 64, 2, 5, 128), ("bf16", 64, 2, 2, 32)),
    ):
        types = {
            **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), f"*{dtype}"),
            **dict.fromkeys(("table_ptr", "items_ptr"), "*i32"),
            "scale": "fp32",
            **dict.fromkeys(strides, "i32"),
        }
        own = {"GROUP": group, "QUERIES": prefill.QUERIES, "BLOCK": block_size, "DIM": dim}
        cases.append(Case(f"attend_item {dtype} {own}", prefill.kernel(), types, own, {"num_stages": num_stages}))
    return cases


def elementwise_cases() -> list[Case]:
    normalize, add_and_normalize = norm.kernels()
    gate_and_multiply, add_and_gelu = activation.kernels()
    cases: list[Case] = []
    for dtype in ("bf16", "fp16", "fp32"):

        def point(*names: str, dtype: str = dtype) -> dict[str, str]:
            return dict.fromkeys((f"{name}_ptr" for name in names), f"*{dtype}")

        row = {"WIDTH": 3200, "BLOCK": 4096}
        types = {**point("x", "weight", "next_weight", "out"), "x_stride": "i32", "out_stride": "i32", "eps": "fp32"}
        cases.append(Case(f"normalize {dtype}", normalize, types, row, {"num_warps": 8}))
        types = point("residual", "x", "scale", "weight", "bias", "sum", "normed")
        types |= {"residual_stride": "i32", "x_stride": "i32", "eps": "fp32"}
        options = {"num_warps": 8, "enable_fp_fusion": False}
        for is_centered in (False, True):
            name = f"add_and_normalize {dtype}{', layer norm' if is_centered else ''}"
            flags = {"HAS_SCALE": True, "IS_CENTERED": is_centered}
            cases.append(Case(name, add_and_normalize, types, {**row, **flags}, options))
        types = {**point("gate_up", "out"), "row_stride": "i32"}
        piece = {"WIDTH": 12800, "BLOCK": 1024}
        cases.append(Case(f"gate_and_multiply {dtype}", gate_and_multiply, types, piece, {}))
        types = {**point("x", "bias", "out"), "x_stride": "i32", "out_stride": "i32"}
        phi = None if dtype == "fp32" else activation.fit_phi()
        biased = {**piece, "HAS_BIAS": True, "PHI": phi, "PHI_RANGE": activation.PHI_RANGE}
        cases.append(Case(f"add_and_gelu {dtype}", add_and_gelu, types, biased, {"num_warps": 2}))
        types = {**point("qkv"), "cos_ptr": "*fp32", "sin_ptr": "*fp32", "slots_ptr": "*i64"}
        types |= point("q", "k", "k_cache", "v_cache")
        types |= dict.fromkeys(("qkv_stride", "block_stride", "slot_stride", "head_stride"), "i32")
        types |= {"eps": "fp32"}
        flags = {"BLOCK_SIZE": 64, "KEEPS_KEYS": True}
        for num_heads, num_kv_heads, heads, half in ((48, 8, 8, 64), (14, 2, 2, 32), (8, 8, 8, 16), (32, 8, 8, 64)):
            sizes = {"NUM_HEADS": num_heads, "NUM_KV_HEADS": num_kv_heads, "HEADS": heads, "HALF": half, "LANES": half}
            absent = {"HAS_NORMS": False, "q_weight_ptr": None, "k_weight_ptr": None}
            cases.append(Case(f"rotate {dtype} {sizes}", rope.kernel(), types, {**sizes, **flags, **absent}, {}))
        normed = types | point("q_weight", "k_weight")
        name = f"rotate {dtype} {sizes}, normalised"
        cases.append(Case(name, rope.kernel(), normed, {**sizes, **flags, "HAS_NORMS": True}, {}))
    return cases


def all_cases(capability: int) -> list[Case]:
    pytest.importorskip("triton")
    return attention_cases() + skinny_cases(capability) + pixel_cases() + prefill_cases() + elementwise_cases()


# No multiple of 16 in any launch; everything else is one in those of the family, for which Triton compiles wider and
# pipelined loads.
UNEVEN = {"num_rows", "num_taps"}
MOST_OF_PRODUCTS = 64 << 10  # the most shared memory of any product is more, or this compiles other kernels than run


def find_attributes(case: Case) -> dict[tuple[int], list[list[str | int]]]:
    """Position of each argument -> what Triton's launcher finds out of its value."""
    return {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(case.kernel.arg_names)
        if name not in UNEVEN and case.types.get(name, "fp32") != "fp32" and case.constants.get(name) is None
    }


# Compiling for one takes most of a minute where nothing is cached: the newest that we measure on stands for all.
EVERY_TIME = 90


@pytest.mark.parametrize(
    "capability", [pytest.param(c, marks=() if c == EVERY_TIME else pytest.mark.slow) for c in SHARED_BYTES]
)
def test_every_kernel_compiles_and_fits(capability: int) -> None:
    cases = all_cases(capability)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    largest = 0
    for case in cases:
        constants, options = dict(case.constants), dict(case.options)
        if "IS_DEPENDENT" in case.kernel.arg_names:
            constants["IS_DEPENDENT"] = options["launch_pdl"] = capability >= 90
        signature = {**case.types, **dict.fromkeys(constants, "constexpr")}
        source = ASTSource(case.kernel, signature, constants, find_attributes(case))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Triton 3.9 announces another default of its own
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.metadata.shared <= SHARED_BYTES[capability], case.name
        if "multiply_share" in case.name:
            largest = max(largest, compiled.metadata.shared)
        if constants.get("IS_DEPENDENT"):
            before, found, _ = compiled.asm["ptx"].partition("griddepcontrol.wait")
            assert found, case.name
            # Decode attention reads lengths, which no kernel writes.
            assert before.count("ld.global") <= int("attend_split" in case.name), case.name
            assert not any(touch in before for touch in ("st.global", "cp.async", "atom.", "red.global")), case.name
    assert largest > MOST_OF_PRODUCTS
