"""Times every kernel of a step against its plain twin and against what the device can do.

    python benchmarks/kernels.py [--decoders qwen2-0.5b,qwen3-8b] [--device cpu --rows 2]

Shapes are a 26B's, and behind them those of the decoders that --decoders names, with the 300M tower's norm.

Prints a table for people and one JSON line. The ceilings are the rates of a large copy and of a large matrix product,
measured first; the copy's may be given with --bandwidth. Each call finds the L2 cache flushed. --rows bounds the rows
of every case: with --device cpu, where both columns are the twin, that only shows that the table runs.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from shapes import DECODERS, TOWERS, list_products
from torch import Tensor

from tilewise import kernels
from tilewise.kernels import AttentionBatch, HeadNorms, PrefillChunk, reference, resample
from tilewise.kernels.batch import list_items
from tilewise.kernels.triton import skinny

WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM = 6144, 16384, 48, 8, 128
TOWER_WIDTH, TOWER_INNER, TOWER_TILES, TOWER_POSITIONS = 3200, 12800, 7, 1025
TOWER_ROWS = TOWER_TILES * TOWER_POSITIONS
PRODUCTS = {"qkv": (8192, WIDTH), "o": (WIDTH, WIDTH), "down": (WIDTH, INNER), "head": (92672, WIDTH)}
PROMPT_TOKENS = 1791  # of the mixed batch's mean request
DECODER_ROWS = (1, 16, 64, 2048)
BLOCK_SIZE = 64
CONTEXT_BLOCKS = 30  # of a request with one picture
TILE_SIZE = 448
EPS = 1e-5
MEBIBYTE = 1 << 20

Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Heads:
    """Of a decoder's attention."""

    number: int
    num_kv: int
    size: int
    has_norms: bool = False


OURS = Heads(HEADS, KV_HEADS, HEAD_DIM)


@dataclass(frozen=True)
class Kernel:
    """`make` draws the inputs for a number of rows; `work` counts from them the bytes moved, or operations."""

    name: str
    rows: int
    make: Callable[[int, Draw], tuple[Any, ...]]
    run: Callable[..., object]
    twin: Callable[..., object]
    work: Callable[..., int]
    unit: str = "B"  # of the ceiling that applies: bytes of a copy, or FLOP of a matrix product


def size(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def make_norm(width: int) -> Callable[[int, Draw], tuple[Any, ...]]:
    return lambda rows, draw: (draw(rows, width), draw(width), EPS)


def make_add(width: int, has_scale: bool) -> Callable[[int, Draw], tuple[Any, ...]]:
    return lambda rows, draw: (
        *(draw(rows, width), draw(rows, width)),
        *(draw(width), EPS, draw(width) if has_scale else None),
    )


def make_rope(rows: int, draw: Draw, heads: Heads = OURS) -> tuple[Any, ...]:
    qkv = draw(rows, (heads.number + 2 * heads.num_kv) * heads.size)
    angles = torch.rand(rows, heads.size // 2, device=qkv.device)
    caches = (draw(2 * rows // BLOCK_SIZE + 1, BLOCK_SIZE, heads.num_kv, heads.size) for _ in range(2))
    slots = torch.randperm(2 * rows, device=qkv.device)[:rows]
    norms = HeadNorms(draw(heads.size), draw(heads.size), EPS) if heads.has_norms else None
    return qkv, (angles.cos(), angles.sin()), *caches, slots, heads.number, norms


def rope(*inputs: Any) -> object:
    *rest, norms = inputs
    return kernels.rope_and_write_kv(*rest, norms=norms)


def make_decodes(rows: int, draw: Draw, heads: Heads = OURS) -> tuple[Any, ...]:
    """Queries that each see a context of their own, in blocks that lie anywhere."""
    num_blocks = rows * CONTEXT_BLOCKS
    q = draw(rows, heads.number, heads.size)
    caches = (draw(num_blocks, BLOCK_SIZE, heads.num_kv, heads.size) for _ in range(2))
    table = torch.randperm(num_blocks, device=q.device).int().view(rows, CONTEXT_BLOCKS)
    lengths = torch.full((rows,), CONTEXT_BLOCKS * BLOCK_SIZE, dtype=torch.int32, device=q.device)
    return q, None, *caches, AttentionBatch(lengths.long() - 1, lengths.long() - 1, rows, table, lengths)


def attend_plainly(q: Tensor, _: None, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> Tensor:
    return reference.attend_decodes(q, k_cache, v_cache, batch.block_table, batch.lengths)


def make_chunk(rows: int, draw: Draw) -> tuple[Any, ...]:
    """The last `rows` tokens of a prompt whose keys and values are all stored, as a captured step has them."""
    num_blocks = -(-PROMPT_TOKENS // BLOCK_SIZE)
    q = draw(rows, HEADS, HEAD_DIM)
    caches = (draw(num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM) for _ in range(2))
    table = torch.randperm(num_blocks, device=q.device).int()[None]
    chunk = PrefillChunk(0, PROMPT_TOKENS - rows, PROMPT_TOKENS)
    items = torch.tensor(list(list_items([(0, 0, chunk.start, chunk.end)])), dtype=torch.int32, device=q.device)
    positions, none = torch.arange(chunk.start, chunk.end, device=q.device), table[:0]
    return q, None, *caches, AttentionBatch(positions, positions, 0, none, none[:, 0], (chunk,), table, items)


def attend_chunk_plainly(q: Tensor, _: None, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> Tensor:
    assert batch.chunk_table is not None
    chunk = batch.chunks[0]
    return reference.attend_prefill(
        q, *reference.gather_context(k_cache, v_cache, batch.chunk_table[0], chunk.end), chunk
    )


def make_heads(num_tiles: int, draw: Draw) -> tuple[Any, ...]:
    """Queries, keys and values as views of a packed projection."""
    packed = draw(num_tiles, TOWER_POSITIONS, 3 * TOWER_WIDTH)
    return packed.unflatten(-1, (3, TOWER_WIDTH // HEAD_DIM, HEAD_DIM)).unbind(2)


def make_product(n: int, k: int) -> Callable[[int, Draw], tuple[Any, ...]]:
    return lambda rows, draw: (draw(rows, k), draw(n, k))


def multiply_gated(x: Tensor, weight: Tensor) -> Tensor:
    if skinny.decline_gated(x, weight) is None:
        return kernels.linear_gated(x, weight)
    return kernels.silu_and_multiply(kernels.linear(x, weight))


def multiply_gated_plainly(x: Tensor, weight: Tensor) -> Tensor:
    return reference.silu_and_multiply(F.linear(x, weight))


def make_picture(height: int, draw: Draw) -> tuple[Any, ...]:
    """A picture of 3:2 and its layout: of 600x400 in 3 x 2 tiles and a thumbnail for a height of 400."""
    return draw_pixels(draw, height, 3 * height // 2, 3), 3, 2, True, TILE_SIZE


def make_tiles(num_tiles: int, draw: Draw) -> tuple[Any, ...]:
    return draw_pixels(draw, num_tiles, TILE_SIZE, TILE_SIZE, 3), draw(1).dtype


def draw_pixels(draw: Draw, *shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, device=draw(1).device)


KERNELS: list[Kernel] = [
    *(
        Kernel(
            "resize, cut", height, make_picture, kernels.cut_tiles, resample.cut_plainly,
            lambda image, *_: size(image) + 7 * TILE_SIZE**2 * 3,
        )
        for height in (400, 2000)
    ),
    Kernel(
        "normalize tiles", 7, make_tiles, kernels.normalize_tiles, resample.normalize_plainly,
        lambda tiles, dtype: (1 + dtype.itemsize) * size(tiles),
    ),
    Kernel(
        "tower add, scale, norm", TOWER_ROWS, make_add(TOWER_WIDTH, has_scale=True),
        kernels.add_rms_norm, reference.add_rms_norm, lambda residual, x, *_: 2 * size(residual, x),
    ),
    Kernel(
        "tower q/k norm", TOWER_ROWS,
        lambda rows, draw: (draw(rows, 3 * TOWER_WIDTH), draw(TOWER_WIDTH), draw(TOWER_WIDTH), EPS),
        kernels.rms_norm_queries_and_keys_, reference.rms_norm_queries_and_keys_,
        lambda qkv, *_: 2 * size(qkv) * 2 // 3,
    ),
    Kernel(
        "tower gelu", TOWER_ROWS, lambda rows, draw: (draw(rows, TOWER_INNER),),
        kernels.gelu, reference.gelu, lambda x: 2 * size(x),
    ),
    Kernel(
        "tower bias, gelu", TOWER_ROWS, lambda rows, draw: (draw(rows, TOWER_INNER), draw(TOWER_INNER)),
        kernels.gelu, reference.gelu, lambda x, _: 2 * size(x),
    ),
    *(
        Kernel(
            "attend decodes", rows, make_decodes, kernels.attend_cached, attend_plainly,
            lambda q, _, k_cache, v_cache, batch: size(k_cache, v_cache, batch.block_table) + 2 * size(q),
        )
        for rows in DECODER_ROWS[:-1]
    ),
    *(
        Kernel(
            "attend chunk", rows, make_chunk, kernels.attend_cached, attend_chunk_plainly,
            lambda q, *_: 4 * HEADS * HEAD_DIM * sum(range(PROMPT_TOKENS - len(q) + 1, PROMPT_TOKENS + 1)), "FLOP",
        )
        for rows in (256, PROMPT_TOKENS)
    ),
    Kernel(
        "attend tiles (cuDNN)", TOWER_TILES, make_heads, kernels.attend_tiles, reference.attend_tiles,
        lambda q, *_: 4 * len(q) * TOWER_POSITIONS**2 * TOWER_WIDTH, "FLOP",
    ),
    *(
        kernel
        for rows in DECODER_ROWS[:-1]
        for kernel in (
            *(
                Kernel(name, rows, make_product(*shape), kernels.linear, F.linear, lambda x, weight: size(x, weight))
                for name, shape in PRODUCTS.items()
            ),
            Kernel(
                "gate, up, swiglu", rows, make_product(2 * INNER, WIDTH), multiply_gated, multiply_gated_plainly,
                lambda x, weight: size(x, weight),
            ),
        )
    ),
    *(
        kernel
        for rows in DECODER_ROWS
        for kernel in (
            Kernel(
                "norm", rows, make_norm(WIDTH), kernels.rms_norm, reference.rms_norm,
                lambda x, weight, _: 2 * size(x) + size(weight),
            ),
            Kernel(
                "add, norm", rows, make_add(WIDTH, has_scale=False), kernels.add_rms_norm, reference.add_rms_norm,
                lambda residual, x, weight, *_: 2 * size(residual, x) + size(weight),
            ),
            Kernel(
                "swiglu", rows, lambda rows, draw: (draw(rows, 2 * INNER),),
                kernels.silu_and_multiply, reference.silu_and_multiply, lambda gate_up: size(gate_up) * 3 // 2,
            ),
            Kernel(
                "rope, kv write", rows, make_rope, kernels.rope_and_write_kv, reference.rope_and_write_kv,
                lambda qkv, angles, *_: 2 * size(qkv) + size(*angles),
            ),
        )
    ),
]  # fmt: skip


def list_decoder_kernels(name: str) -> Iterator[Kernel]:
    """The kernels of a decode step of one decoder, whose names begin with its own."""
    decoder = DECODERS[name]
    heads = Heads(decoder.num_heads, decoder.num_kv_heads, decoder.head_dim, decoder.use_qk_norm)
    width, products = decoder.hidden_size, list_products(decoder)
    gate_up = products.pop("gate_up_silu")
    for rows in DECODER_ROWS[:-1]:
        for product, shape in products.items():
            yield Kernel(
                f"{name} {product}", rows, make_product(*shape), kernels.linear, F.linear,
                lambda x, weight: size(x, weight),
            )  # fmt: skip
        yield Kernel(
            f"{name} gate, up", rows, make_product(*gate_up), multiply_gated, multiply_gated_plainly,
            lambda x, weight: size(x, weight),
        )  # fmt: skip
        yield Kernel(
            f"{name} norm", rows, make_add(width, has_scale=False), kernels.add_rms_norm, reference.add_rms_norm,
            lambda residual, x, weight, *_: 2 * size(residual, x) + size(weight),
        )  # fmt: skip
        yield Kernel(
            f"{name} rope", rows, partial(make_rope, heads=heads), rope, reference.rope_and_write_kv,
            lambda qkv, angles, *_: 2 * size(qkv) + size(*angles),
        )  # fmt: skip
        yield Kernel(
            f"{name} decodes", rows, partial(make_decodes, heads=heads), kernels.attend_cached, attend_plainly,
            lambda q, _, k_cache, v_cache, batch: size(k_cache, v_cache, batch.block_table) + 2 * size(q),
        )  # fmt: skip


SMALL_TOWER_WIDTH = TOWERS["300m"].hidden_size
SMALL_TOWER_NORM = Kernel(
    "300m add, scale, norm", TOWER_ROWS,
    lambda rows, draw: (
        *(draw(rows, SMALL_TOWER_WIDTH), draw(rows, SMALL_TOWER_WIDTH)),
        *(draw(SMALL_TOWER_WIDTH), draw(SMALL_TOWER_WIDTH), EPS, draw(SMALL_TOWER_WIDTH)),
    ),
    kernels.add_layer_norm, reference.add_layer_norm, lambda residual, x, *_: 2 * size(residual, x),
)  # fmt: skip


def measure_s(run: Callable[[], object], device: str) -> float:
    """Median seconds of one call."""
    if device == "cuda":
        from triton.testing import do_bench

        milliseconds: Any = do_bench(run, return_mode="median")
        return milliseconds / 1e3
    times: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    source = torch.empty((1024 if device == "cuda" else 64) * MEBIBYTE, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / measure_s(lambda: target.copy_(source), device)


def measure_matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP a second of a large product of random matrices."""
    size = 8192 if device == "cuda" else 512
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / measure_s(lambda: left @ right, device)


def describe(device: str) -> dict[str, str]:
    cwd = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=cwd, capture_output=True, text=True, check=False)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "commit": commit.stdout.strip()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rows", type=int, help="at most so many rows in every case")
    parser.add_argument("--decoders", default="qwen2-0.5b,qwen3-8b", help=f"decoders of {', '.join(DECODERS)}")
    parser.add_argument("--bandwidth", type=float, help="bytes a second to compare with; measured by default")
    options = parser.parse_args()

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=options.device).to(dtype)

    dtype = getattr(torch, options.dtype)
    bandwidth = options.bandwidth or measure_bandwidth(options.device)
    ceilings = {"B": bandwidth, "FLOP": measure_matrix_rate(options.device, dtype)}
    print(f"ceilings: {bandwidth / 1e9:.0f} GB/s, {ceilings['FLOP'] / 1e12:.1f} TFLOP/s\n")
    print(f"{'kernel':26} {'rows':>5} {'us':>9} {'G/s':>8} {'share':>6} {'twin us':>9} {'x':>6}")
    results: list[dict[str, object]] = []
    seen: set[tuple[str, int]] = set()
    decoders = [kernel for name in options.decoders.split(",") if name for kernel in list_decoder_kernels(name)]
    for kernel in [*KERNELS, SMALL_TOWER_NORM, *decoders]:
        rows = min(kernel.rows, options.rows or kernel.rows)
        if (kernel.name, rows) in seen:
            continue
        seen.add((kernel.name, rows))
        inputs = kernel.make(rows, draw)
        ours, twin = (
            measure_s(lambda function=function, inputs=inputs: function(*inputs), options.device)
            for function in (kernel.run, kernel.twin)
        )
        rate = kernel.work(*inputs) / ours
        share = rate / ceilings[kernel.unit]
        figures = f"{1e6 * ours:9.1f} {rate / 1e9:8.0f} {share:6.2f} {1e6 * twin:9.1f} {twin / ours:6.2f}"
        print(f"{kernel.name:26} {rows:5} {figures}")
        results.append(
            {
                "kernel": kernel.name,
                "rows": rows,
                "us": round(1e6 * ours, 2),
                "twin_us": round(1e6 * twin, 2),
                "unit": f"G{kernel.unit}/s",
                "rate": round(rate / 1e9, 1),
                "share": round(share, 3),
            }
        )
    line = {"benchmark": "kernels", "bandwidth": round(bandwidth), "matrix_rate": round(ceilings["FLOP"])}
    print(json.dumps({**line, "dtype": options.dtype, **describe(options.device), "kernels": results}))


if __name__ == "__main__":
    main()
