"""Norms round where the reference model rounds."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tilewise.layers.norm import LayerNorm, RMSNorm

WIDTH = 64


def make_norm(kind: type[RMSNorm], dtype: torch.dtype) -> RMSNorm:
    norm = kind(WIDTH, 1e-6, dtype)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in norm.named_parameters():
        norm.slot(name).load(1 + torch.randn(parameter.shape, generator=generator))
    return norm


def make_input(dtype: torch.dtype) -> Tensor:
    return (3 * torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0))).to(dtype)


def test_rms_norm_in_bf16_rounds_before_the_weight() -> None:
    norm, x = make_norm(RMSNorm, torch.bfloat16), make_input(torch.bfloat16)
    normed = x.double() / (x.double().square().mean(-1, keepdim=True) + norm.eps).sqrt()
    out = norm(x)
    assert out.dtype == torch.bfloat16
    # Another order of summation may move a value over a rounding edge; rounding once moves many.
    assert share_of_equals(out, normed.bfloat16() * norm.weight) > 0.99
    assert share_of_equals(out, (normed * norm.weight.double()).bfloat16()) < 0.9


def share_of_equals(one: Tensor, other: Tensor) -> float:
    return (one == other).double().mean().item()


def test_rms_norm_equals_llamas_to_the_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        norm, theirs = make_norm(RMSNorm, dtype), LlamaRMSNorm(WIDTH, eps=1e-6).to(dtype)
        theirs.weight.data.copy_(norm.weight)
        assert torch.equal(norm(make_input(dtype)), theirs(make_input(dtype)))


def test_layer_norm_in_bf16_rounds_once() -> None:
    norm, x = make_norm(LayerNorm, torch.bfloat16), make_input(torch.bfloat16)
    wide = F.layer_norm(x.double(), (WIDTH,), norm.weight.double(), norm.bias.double(), norm.eps)
    torch.testing.assert_close(norm(x), wide.bfloat16(), rtol=2**-7, atol=1e-3)


def test_a_layer_norm_adds_a_branch_with_its_scale_and_normalises_what_the_stream_then_is() -> None:
    norm, stream = make_norm(LayerNorm, torch.bfloat16), make_input(torch.bfloat16)
    branch, scale = stream.flip(0), norm.bias.flip(0)
    for factor in (None, scale):
        normed, total = norm.add(stream, branch, factor)
        assert torch.equal(total, stream + (branch if factor is None else branch * factor))
        assert torch.equal(normed, norm(total))
