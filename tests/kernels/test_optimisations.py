"""What is left out is declined by name, until the block that left it out has ended."""

import pytest
import torch
from torch.nn.attention import SDPBackend

from tilewise.kernels import dispatch
from tilewise.kernels.optimisations import Optimisation, is_left_out, without
from tilewise.kernels.triton import decode_attention, skinny

X = torch.zeros(1, 16)


@pytest.mark.parametrize(
    ("optimisation", "decline"),
    [
        (Optimisation.SKINNY_PRODUCTS, lambda: skinny.decline(X, X)),
        (Optimisation.SKINNY_PRODUCTS, lambda: skinny.decline_gated(X, X)),
        (Optimisation.ELEMENTWISE_KERNELS, lambda: dispatch.decline(X)),
        (Optimisation.PAGED_ATTENTION, lambda: decode_attention.decline_decodes(X, X)),
    ],
)
def test_a_kernel_that_is_left_out_declines_with_that_reason(optimisation: Optimisation, decline) -> None:
    with without(*set(Optimisation) - {optimisation}):
        assert "left out" not in decline()
    with without(optimisation):
        assert "left out" in decline()
    assert "left out" not in decline()


def test_torchs_other_attentions_stay_where_cudnns_is_left_out() -> None:
    before = dispatch.list_backends()
    with without(Optimisation.CUDNN_ATTENTION):
        assert dispatch.list_backends() == [name for name in before if name is not SDPBackend.CUDNN_ATTENTION]
    assert dispatch.list_backends() == before


def test_an_inner_block_gives_back_only_what_it_left_out_itself() -> None:
    with without(Optimisation.CUDNN_ATTENTION):
        with without(Optimisation.CUDNN_ATTENTION, Optimisation.SKINNY_PRODUCTS):
            assert is_left_out(Optimisation.SKINNY_PRODUCTS)
        assert is_left_out(Optimisation.CUDNN_ATTENTION)
        assert not is_left_out(Optimisation.SKINNY_PRODUCTS)
    assert not any(map(is_left_out, Optimisation))
