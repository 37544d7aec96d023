"""The oracle again, on a GPU: captured and not, and with each optimisation taken away.

Greedy answers in fp32 equal transformers' to the token. In bf16, on a decoder wide enough for every kernel, the logits
are held to a twin with the same rounded weights in fp32: 3e-2 of their norm, eight bits through three layers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracle.driving import answer, record_logits
from tests.oracle.test_internvl import TWO_PICTURES, continue_greedily, make_request, prepare
from tests.oracle.twins import build_engine, create_twin, relative_error
from tilewise import kernels
from tilewise.kernels import attention, launch, skinny
from tilewise.types import Request

TOLERANCE, BF16_TOLERANCE = 1e-4, 3e-2
WIDE = 2048
REQUESTS: tuple[Request, ...] = (
    make_request("single tile", (3, 4), prepare(56, 56, 1, 1), (9,)),
    make_request("text", tuple(range(40))),
    TWO_PICTURES,
    make_request("picture last", (7,) * 20, prepare(300, 40, 3, 1)),
)


def refuse(*_given: object, **_named: object) -> str:
    return "refused by the test"


WITHOUT: dict[str, tuple[tuple[Any, str, object], ...]] = {
    "nothing": (),
    "our products": ((skinny, "decline", refuse),),
    "elementwise kernels": ((kernels, "decline", refuse),),
    "our attention": ((attention, "decline_decodes", refuse),),
    "cuDNN": ((kernels, "_BACKENDS", kernels._BACKENDS[-1:]),),
    "dependent launches": ((launch, "_MOST_ROWS", 0),),
}


def measure_wide(folder: Path, device: str) -> float:
    """The error of the logits behind a prompt with pictures, and of those behind the next token."""
    twin = create_twin(width=WIDE)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(parameter.bfloat16())
    expected_ids, expected = continue_greedily(twin, TWO_PICTURES)
    options = {"kv_cache_bytes": 64 << 20, "device": device, "dtype": "bfloat16", "use_cuda_graphs": False}
    core = build_engine(twin, folder, **options)
    recorded: list[Tensor] = record_logits(core)
    ids = answer(core, TWO_PICTURES)["two"].token_ids
    assert ids[0] == expected_ids[0], "the next step is about another token"
    return relative_error(torch.cat(recorded)[:2].cpu(), expected[:2])


@pytest.mark.gpu
@pytest.mark.parametrize("is_captured", [True, False])
@pytest.mark.parametrize("flavour", ["6b", "300m"])
@pytest.mark.parametrize("chunk", [1024, 24], ids=["whole", "chunks that end inside a tile"])
def test_answers_on_a_gpu_equal_transformers(flavour: str, is_captured: bool, chunk: int, tmp_path: Path) -> None:
    twin = create_twin(flavour)
    options = {"device": "cuda", "use_cuda_graphs": is_captured, "max_prefill_token_num": chunk}
    core = build_engine(twin, tmp_path, **options)
    assert (core.runner._graphs is not None) == is_captured
    first, second = answer(core, *REQUESTS), answer(core, *REQUESTS)
    for request in REQUESTS:
        expected = continue_greedily(twin, request)[0]
        assert first[request.request_id].token_ids == expected
        assert second[request.request_id].token_ids == expected, "from the caches"


@pytest.mark.gpu
def test_logits_on_a_gpu_equal_transformers_in_fp32(tmp_path: Path) -> None:
    twin = create_twin()
    core = build_engine(twin, tmp_path, device="cuda", use_cuda_graphs=False)
    recorded = record_logits(core)
    answer(core, TWO_PICTURES)
    assert relative_error(torch.cat(recorded).cpu(), continue_greedily(twin, TWO_PICTURES)[1]) < TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("without", WITHOUT)
def test_logits_in_bf16_are_the_twins_with_and_without_each_optimisation(
    without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for module, name, value in WITHOUT[without]:
        monkeypatch.setattr(module, name, value)
    multiply: Callable[..., Tensor] = skinny._multiply

    def counted(*given: Any, **named: Any) -> Tensor:
        calls.append("product")
        return multiply(*given, **named)

    monkeypatch.setattr(skinny, "_multiply", counted)
    assert measure_wide(tmp_path, "cuda") < BF16_TOLERANCE
    assert bool(calls) == (without != "our products")
