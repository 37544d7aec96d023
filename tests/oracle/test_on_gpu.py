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
from torch.nn.attention import SDPBackend

from tests.oracle.driving import RecordedGraphs, answer, record_logits
from tests.oracle.test_internvl import TWO_PICTURES, continue_greedily, make_request, prepare
from tests.oracle.twins import build_engine, create_twin, relative_error
from tilewise.kernels import dispatch
from tilewise.kernels.optimisations import Optimisation, without
from tilewise.kernels.triton import decode_attention as attention
from tilewise.kernels.triton import launch, norm, skinny
from tilewise.types import Request

TOLERANCE, BF16_TOLERANCE = 1e-4, 3e-2
WIDE = 2048
NOT_EVERYWHERE = (Optimisation.CUDNN_ATTENTION, Optimisation.DEPENDENT_LAUNCHES)
REQUESTS: tuple[Request, ...] = (
    make_request("single tile", (3, 4), prepare(56, 56, 1, 1), (9,)),
    make_request("text", tuple(range(40))),
    TWO_PICTURES,
    make_request("picture last", (7,) * 20, prepare(300, 40, 3, 1)),
)


def is_on(optimisation: Optimisation, calls: set[Optimisation]) -> bool:
    """What took part: products, norms and attention say so when they are called."""
    if optimisation is Optimisation.CUDNN_ATTENTION:
        return dispatch.list_backends()[0] is SDPBackend.CUDNN_ATTENTION
    if optimisation is Optimisation.DEPENDENT_LAUNCHES:
        return launch.depend(torch.device("cuda", torch.cuda.current_device()), 1)["IS_DEPENDENT"]
    return optimisation in calls


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> set[Optimisation]:
    """The optimisations whose kernels were called."""
    called: set[Optimisation] = set()

    def watch(optimisation: Optimisation, owner: Any, name: str) -> None:
        work: Callable[..., Any] = getattr(owner, name)

        def counted(*given: Any, **named: Any) -> Any:
            called.add(optimisation)
            return work(*given, **named)

        monkeypatch.setattr(owner, name, counted)

    watch(Optimisation.SKINNY_PRODUCTS, skinny, "multiply")
    watch(Optimisation.SKINNY_PRODUCTS, skinny, "multiply_gated")
    watch(Optimisation.ELEMENTWISE_KERNELS, norm, "add_rms_norm")
    watch(Optimisation.PAGED_ATTENTION, attention, "attend_decodes")
    return called


@pytest.mark.gpu
@pytest.mark.parametrize("is_captured", [True, False])
@pytest.mark.parametrize("flavour", ["6b", "300m"])
@pytest.mark.parametrize("chunk", [1024, 24], ids=["whole", "chunks that end inside a tile"])
def test_answers_on_a_gpu_equal_transformers(flavour: str, is_captured: bool, chunk: int, tmp_path: Path) -> None:
    twin = create_twin(flavour)
    options = {"use_cuda_graphs": is_captured, "max_prefill_token_num": chunk, "cache_block_seq_len": 16}
    core = build_engine(twin, tmp_path, device="cuda", **options)
    recorded = RecordedGraphs(core)
    first, second = answer(core, *REQUESTS), answer(core, *REQUESTS)
    for request in REQUESTS:
        expected = continue_greedily(twin, request)[0]
        assert first[request.request_id].token_ids == expected
        assert second[request.request_id].token_ids == expected
    assert second["two"].cached_tokens > TWO_PICTURES.spans[0].start
    assert bool(recorded.num_chunks) == is_captured


@pytest.mark.gpu
def test_logits_on_a_gpu_equal_transformers_in_fp32(tmp_path: Path) -> None:
    twin = create_twin()
    core = build_engine(twin, tmp_path, device="cuda", use_cuda_graphs=False)
    recorded = record_logits(core)
    answer(core, TWO_PICTURES)
    assert relative_error(torch.cat(recorded).cpu(), continue_greedily(twin, TWO_PICTURES)[1]) < TOLERANCE


def measure_wide(folder: Path) -> float:
    """The error of the logits behind a prompt with pictures, and of those behind the next token."""
    twin = create_twin(width=WIDE)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(parameter.bfloat16())
    expected_ids, expected = continue_greedily(twin, TWO_PICTURES)
    options = {"kv_cache_bytes": 64 << 20, "device": "cuda", "dtype": "bfloat16", "use_cuda_graphs": False}
    core = build_engine(twin, folder, **options)
    recorded: list[Tensor] = record_logits(core)
    ids = answer(core, TWO_PICTURES)["two"].token_ids
    assert ids[0] == expected_ids[0], "the next step is about another token"
    return relative_error(torch.cat(recorded)[:2].cpu(), expected[:2])


@pytest.mark.gpu
@pytest.mark.parametrize("left_out", [None, *Optimisation])
def test_logits_in_bf16_are_the_twins_with_and_without_each_optimisation(
    left_out: Optimisation | None, tmp_path: Path, calls: set[Optimisation]
) -> None:
    missing = {name for name in NOT_EVERYWHERE if not is_on(name, calls)}
    if left_out in missing:
        pytest.skip(f"this GPU, or its library, has no {left_out}")
    with without(*() if left_out is None else (left_out,)):
        assert measure_wide(tmp_path) < BF16_TOLERANCE
        for name in set(Optimisation) - missing:
            assert is_on(name, calls) == (name is not left_out), name
