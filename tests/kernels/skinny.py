"""Random products of a few rows with a weight, and the comparison of the skinny kernel with its twins.

Run as a program it compares under Triton's interpreter, which must be chosen before Triton is imported, and prints
one JSON object: case -> [error, whether a second run gave the same bits].
"""

import json
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tests.kernels.paged import measure_error
from tilewise.kernels import reference
from tilewise.kernels.triton import activation
from tilewise.kernels.triton.product_config import ProductConfig, choose_config
from tilewise.kernels.triton.skinny import multiply, multiply_gated

TOLERANCES = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 4e-3}


@dataclass(frozen=True)
class Product:
    m: int
    n: int
    k: int
    dtype: str
    config: ProductConfig
    has_bias: bool = False
    is_gated: bool = False

    @property
    def name(self) -> str:
        config = self.config
        order = "weight-x" if config.weight_first else "x-weight"
        cut = f"{config.block_n}x{config.block_k}-splits{config.num_splits}-{order}"
        kind = "-gated" if self.is_gated else "-bias" if self.has_bias else ""
        return f"{self.dtype}-{self.m}x{self.n}x{self.k}-{cut}{kind}"


def compare_with_twin(product: Product, device: str) -> tuple[float, bool]:
    """The error against the twin in fp32 on the same rounded inputs, and whether the same inputs give the same bits."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, product.dtype)
    shapes = ((product.m, product.k), (product.n, product.k), (product.n,))
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes)
    # As large as an output, so that a forgotten bias is no rounding error.
    bias = bias * product.k**0.5 if product.has_bias else None
    first, second = (multiply(x, weight, bias, product.config) for _ in range(2))
    assert first.dtype == dtype
    assert first.shape == (product.m, product.n)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return measure_error(first.cpu(), expected.cpu()), torch.equal(first, second)


def compare_gated(product: Product, device: str) -> tuple[float, bool]:
    """The error against the kernels that the gated product replaces, and whether the same inputs give the same bits.

    It is held to the plain twin, too, whose product is in fp64 before it is rounded. Not value by value: matrix units
    truncate as they add, which moves a value of 30 to the other side of a rounding edge; but no error of the two
    products, which are multiplied, may more than add up.
    """
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, product.dtype)
    shapes = (product.m, product.k), (product.n, product.k)
    x, weight = (torch.randn(shape, generator=generator) for shape in shapes)
    weight = weight * 2 / product.k**0.5  # gates of a few units, where SiLU bends
    x, weight = x.to(dtype).to(device), weight.to(dtype).to(device)
    first, second = (multiply_gated(x, weight, product.config) for _ in range(2))
    twin = reference.silu_and_multiply(F.linear(x.double(), weight.double()).to(dtype))
    assert measure_error(first.cpu(), twin.cpu()) < 4 * TOLERANCES[product.dtype]
    apart = activation.silu_and_multiply(multiply(x, weight, None, product.config))
    return measure_error(first.cpu(), apart.cpu()), torch.equal(first, second)


def compare(product: Product, device: str) -> tuple[float, bool]:
    return (compare_gated if product.is_gated else compare_with_twin)(product, device)


# Odd N, K that three splits do not share equally, every padding of the rows, both orders of the factors.
_CUTS = (
    (1, 33, 256, ProductConfig(16, 128, 1, 4, 3), False),
    (3, 70, 384, ProductConfig(32, 128, 1, 4, 3), True),
    (3, 70, 384, ProductConfig(32, 128, 3, 4, 3), True),
    (16, 64, 512, ProductConfig(64, 256, 2, 4, 3), False),
    (16, 65, 640, ProductConfig(64, 128, 3, 4, 3, weight_first=True), True),
    (17, 40, 512, ProductConfig(32, 256, 1, 4, 3), False),
    (64, 129, 384, ProductConfig(128, 128, 2, 4, 3), True),
    (64, 100, 256, ProductConfig(64, 128, 1, 4, 3, weight_first=True), False),
)
# As chosen for the narrowest decoder, 896 wide, on a large GPU: its qkv has a bias, and 7 blocks are no even number.
_NARROW = tuple(
    (m, n, k, choose_config(m, n, k, 132), n == 1152) for m, n, k in ((1, 1152, 896), (3, 896, 4864), (17, 896, 896))
)
# Gates that fill no tile, both orders, every padding, K in one share and in several.
GATED = (
    (3, 70, 640, ProductConfig(32, 128, 3, 4, 3)),
    (1, 66, 256, ProductConfig(16, 128, 1, 4, 3)),
    (3, 70, 384, ProductConfig(64, 128, 1, 4, 3, weight_first=True)),
    (17, 128, 256, ProductConfig(64, 256, 1, 4, 3)),
    (64, 258, 256, ProductConfig(128, 128, 1, 4, 3, weight_first=True)),
)
INTERPRETED = tuple(
    product
    for dtype in ("float32", "float16")
    for product in (
        *(Product(m, n, k, dtype, config, has_bias) for m, n, k, config, has_bias in (*_CUTS, *_NARROW)),
        *(Product(m, n, k, dtype, config, is_gated=True) for m, n, k, config in GATED),
    )
)

if __name__ == "__main__":
    assert os.environ["TRITON_INTERPRET"] == "1"
    print(json.dumps({product.name: compare(product, "cpu") for product in INTERPRETED}))
