"""Every Triton kernel compiles for every generation of GPU that is served, within its shared memory; no GPU needed."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tilewise.kernels import attention

# Bytes of shared memory that one program may take, by compute capability. Source: CUDA C++ Programming Guide, table of
# technical specifications.
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}


@dataclass(frozen=True)
class Case:
    """A kernel, the types of its arguments, its constants and its launch options."""

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, int]
    options: Mapping[str, int]


def attention_cases() -> list[Case]:
    split, merge = attention._kernels()
    strides = ("q_stride", "table_stride", "kv_block_stride", "kv_token_stride", "kv_head_stride")
    types = {
        **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), "*bf16"),
        **dict.fromkeys(("table_ptr", "lengths_ptr"), "*i32"),
        **dict.fromkeys(("partial_ptr", "stats_ptr"), "*fp32"),
        "scale": "fp32",
        **dict.fromkeys(strides, "i32"),
    }
    merged = {"partial_ptr": "*fp32", "stats_ptr": "*fp32", "out_ptr": "*bf16"}
    cases: list[Case] = []
    for splits, group, dim in ((16, 6, 128), (1, 2, 32)):
        own = {"NUM_SPLITS": splits, "GROUP": group, "ROWS": 16, "DIM": dim}
        cases.append(Case(f"attend_split {own}", split, types, {**own, "BLOCK": 64}, {"num_stages": 2}))
        cases.append(Case(f"merge_splits {own}", merge, merged, own, {}))
    return cases


def all_cases() -> list[Case]:
    pytest.importorskip("triton")
    return attention_cases()


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_every_kernel_compiles_and_fits(capability: int) -> None:
    cases = all_cases()
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for case in cases:
        signature = {**case.types, **dict.fromkeys(case.constants, "constexpr")}
        source = ASTSource(case.kernel, signature, dict(case.constants))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Triton 3.9 announces another default of its own
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(case.options))
        assert compiled.metadata.shared <= SHARED_BYTES[capability], case.name
