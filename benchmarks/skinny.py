"""Searches configurations for the products of kernels/triton/skinny.py and times them against cuBLAS.

    python benchmarks/skinny.py [--shapes qkv,o,gate_up,gate_up_silu,down,head] [--decoders qwen3-8b,qwen2-0.5b]
                                [--rows 1,4,16,32,64] [--budget-s 100] [--write] [--dry]

Shapes are a 26B's; `--decoders` takes those of other decoders in shapes.py, each of which may be named, too, as in
`qwen3-8b.qkv`. `gate_up_silu` is the product with SwiGLU in it, against cuBLAS and the kernel of SwiGLU. Every
candidate is held to an fp32 product first, then timed in a CUDA graph over weights that no L2 holds, twelve or more, so
that launch gaps and reuse do not count. Prints a table and one JSON line; `--write` renews the winners' lines in
kernels/tables. GB/s count the bytes of the weight; the share is of the copy bandwidth measured at the start. The budget
is for everything; what it leaves untried is counted. `--dry` runs tiny shapes on the CPU, interpreted: its times mean
nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from shapes import DECODERS, list_products
from torch import Tensor

from tilewise.kernels import silu_and_multiply
from tilewise.kernels.triton import skinny
from tilewise.kernels.triton.launch import depend
from tilewise.kernels.triton.product_config import ProductConfig, choose_config, pad_rows
from tilewise.kernels.triton.skinny import kernel, launch_options, multiply, multiply_gated

SHAPES = {
    "qkv": (8192, 6144),
    "o": (6144, 6144),
    "gate_up": (32768, 6144),
    "gate_up_silu": (32768, 6144),
    "down": (6144, 16384),
    "head": (92672, 6144),
}
DECODER_SHAPES = {
    f"{name}.{product}": shape
    for name, decoder in DECODERS.items()
    for product, shape in list_products(decoder).items()
}
TABLES = Path(skinny.__file__).parents[1] / "tables"
DRY_SHAPES = {"narrow": (48, 256), "wide": (130, 128), "gated": (260, 128)}
GATED = {"gate_up_silu", "gated", *(name for name in DECODER_SHAPES if name.endswith("gate_up_silu"))}
GATED_ROUNDINGS = 4  # gate, up, SiLU and their product, where a plain product has one
BEYOND_L2_BYTES = 256 << 20
MAX_CANDIDATES = 48
NUM_FINALISTS = 4


@dataclass(frozen=True)
class Bench:
    """The device and how it is timed. `copy_gbs` counts bytes read and bytes written."""

    device: torch.device
    dtype: torch.dtype
    num_weights: int
    num_sms: int
    shared_bytes: int
    tolerance: float
    copy_gbs: float

    def time_us(self, call: Callable[[Tensor], Tensor], weights: list[Tensor], num_replays: int) -> float:
        """Median time of one call, all weights in one go."""
        if self.device.type == "cpu":
            start_s = time.perf_counter()
            for weight in weights:
                call(weight)
            return 1e6 * (time.perf_counter() - start_s) / len(weights)
        call(weights[0])
        torch.cuda.synchronize()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        # Not torch.cuda.graph: it empties the allocator's cache, and there are a thousand captures.
        with torch.cuda.stream(stream):
            graph.capture_begin()
            for weight in weights:
                call(weight)
            graph.capture_end()
        times_us = [1e3 * time_ms(graph.replay) / len(weights) for _ in range(num_replays + 1)]
        return statistics.median(times_us[1:])


@dataclass(frozen=True)
class Product:
    """x (m, k) times a weight (n, k), and SwiGLU over gate and up if it is gated."""

    m: int
    n: int
    k: int
    is_gated: bool

    def make_call(self, x: Tensor, config: ProductConfig) -> Callable[[Tensor], Tensor]:
        """Cut one candidate's way, for any weight."""
        if self.is_gated:
            return lambda weight: multiply_gated(x, weight, config)
        return lambda weight: multiply(x, weight, None, config)

    def apply_plainly(self, x: Tensor, weight: Tensor) -> Tensor:
        """Let cuBLAS multiply, and the kernel of SwiGLU follow."""
        out = F.linear(x, weight)
        return silu_and_multiply(out) if self.is_gated else out


@dataclass(frozen=True)
class Result:
    shape: str
    product: Product
    config: ProductConfig
    us: float
    cublas_us: float
    rule_us: float
    error: float
    num_tried: int
    num_untried: int

    @property
    def gbs(self) -> float:
        """Bytes of the weight over the time."""
        return self.product.n * self.product.k * 2 / self.us / 1e3

    def describe(self, copy_gbs: float) -> str:
        """A line of the table."""
        return (
            f"{self.shape:>12} M={self.product.m:<3} {self.us:8.1f} us "
            f"{self.gbs:6.0f} GB/s {self.gbs / copy_gbs:6.1%} | "
            f"cuBLAS {self.cublas_us:8.1f} us, x{self.cublas_us / self.us:4.2f} | chosen now {self.rule_us:8.1f} us | "
            f"{self.num_tried} tried, {self.num_untried} not | {format_config(self.config)}"
        )


def time_ms(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def format_config(config: ProductConfig) -> str:
    *numbers, weight_first = astuple(config)
    return f"ProductConfig({', '.join(map(str, numbers))}{', weight_first=True' if weight_first else ''})"


def measure_copy_gbs() -> float:
    source = torch.randint(256, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times_ms = [time_ms(lambda: target.copy_(source)) for _ in range(20)]
    return 2 * source.numel() / statistics.median(times_ms) / 1e6


def list_configs(bench: Bench, product: Product) -> Iterator[ProductConfig]:
    """Candidates worth a compilation for this shape, the likeliest first.

    Left out: those that read x more than twice as much as the weight, grids that leave a third of the device idle,
    splits of what is wide already, programs that keep less than 24 KiB of the weight in flight on a multiprocessor.
    """
    m, n, k = product.m, product.n, product.k
    rows, num_sms = pad_rows(m), bench.num_sms
    for num_splits in (1,) if product.is_gated else (1, 2, 3, 4, 6):
        for block_n, num_warps, weight_first in (
            (16, 2, False), (32, 4, False), (64, 4, False), (64, 4, True), (128, 8, False), (128, 4, True),
        ):  # fmt: skip
            num_programs = -(-n // block_n) * num_splits
            too_few = num_programs < num_sms * 2 // 3
            too_many = num_splits > 1 and num_programs > 4 * num_sms
            if too_few or too_many or m > 2 * block_n:
                continue
            for block_k in (256, 128, 512):
                if k % block_k or (k // block_k) % num_splits:
                    continue
                for num_stages in (4, 3, 6):
                    config = ProductConfig(block_n, block_k, num_splits, num_warps, num_stages, weight_first)
                    shared_bytes = config.count_shared_bytes(m)
                    per_sm = min(8, bench.shared_bytes // shared_bytes)
                    in_flight = per_sm * (num_stages - 1) * block_n * block_k * 2
                    if per_sm and in_flight >= 24 << 10 and rows * block_k * num_stages * 2 <= bench.shared_bytes // 2:
                        yield config


def choose_candidates(bench: Bench, product: Product) -> list[ProductConfig]:
    """What `choose_config` says now, then an even sample of the rest."""
    m, n, k, is_gated = astuple(product)
    now = choose_config(m, n, k, bench.num_sms, bench.shared_bytes, is_gated)
    rest = [config for config in list_configs(bench, product) if config != now]
    step = max(1.0, len(rest) / (MAX_CANDIDATES - 1))
    return [now, *(rest[int(i * step)] for i in range(min(len(rest), MAX_CANDIDATES - 1)))]


def compile_all(bench: Bench, products: dict[Product, list[ProductConfig]]) -> int:
    """Compile the candidates on all cores; what fails here fails again, alone, when it is tried."""
    import triton

    multiply_share = kernel()
    start_s = time.perf_counter()
    seen: set[tuple[int, ProductConfig, bool, bool]] = set()
    with (
        ThreadPoolExecutor(os.cpu_count()) as executor,
        triton.AsyncCompileMode(executor, ignore_errors=True),
    ):
        for product, candidates in products.items():
            m, n, k, is_gated = astuple(product)
            x, weight = (torch.empty(rows, 128, dtype=bench.dtype, device=bench.device) for rows in (m, 1))
            for config in candidates:
                # Neither N, K nor the number of splits is compiled in, only whether there are any.
                kind = (pad_rows(m), replace(config, num_splits=1), config.num_splits > 1, is_gated)
                if kind in seen:
                    continue
                seen.add(kind)
                options = {**launch_options(m, config, None, is_gated), **depend(bench.device, m)}
                shared = (weight.float(), weight.int()) if config.num_splits > 1 else (None, None)
                multiply_share.warmup(x, weight, None, weight, *shared, m, n, k, grid=(1, 1), **options)
    print(f"{len(seen)} kernels compiled in {time.perf_counter() - start_s:.1f} s on {os.cpu_count()} cores")
    return len(seen)


def try_shape(
    bench: Bench, shape: str, product: Product, weights: list[Tensor], todo: list[ProductConfig], end_s: float
) -> Result:
    """Check and time candidates until `end_s`, then the best few again, longer."""
    x = torch.randn(product.m, product.k, dtype=bench.dtype, device=bench.device)
    expected = product.apply_plainly(x.float(), weights[0].float())
    tolerance = bench.tolerance * (GATED_ROUNDINGS if product.is_gated else 1)
    errors: dict[ProductConfig, float] = {}
    times_us: dict[ProductConfig, float] = {}
    for number, config in enumerate(todo):
        if number > NUM_FINALISTS and time.perf_counter() > end_s:
            break
        call = product.make_call(x, config)
        try:
            out = call(weights[0])
        except Exception as error:  # does not fit this device, or does not compile: not a candidate
            print(f"{shape} M={product.m} {format_config(config)}: {error!r:.120}")
            continue
        errors[config] = ((out.float() - expected).abs().max() / expected.abs().max()).item()
        if not errors[config] < tolerance:
            raise SystemExit(
                f"{shape} M={product.m} {format_config(config)} is off by {errors[config]:.2e} of the largest"
            )
        times_us[config] = bench.time_us(call, weights, num_replays=3)
    finalists = sorted(times_us, key=times_us.__getitem__)[:NUM_FINALISTS]
    final_us = {config: bench.time_us(product.make_call(x, config), weights, num_replays=15) for config in finalists}
    best = min(final_us, key=final_us.__getitem__)
    cublas_us = bench.time_us(lambda weight: product.apply_plainly(x, weight), weights, num_replays=15)
    rule_us = final_us.get(todo[0], times_us.get(todo[0], float("nan")))
    tried = len(times_us)
    return Result(shape, product, best, final_us[best], cublas_us, rule_us, errors[best], tried, len(todo) - tried)


def create_bench(is_dry: bool) -> Bench:
    if is_dry:
        return Bench(torch.device("cpu"), torch.float32, 2, 2, 227 << 10, 1e-5, 1.0)
    device = torch.device("cuda", torch.cuda.current_device())
    _, num_sms, shared_bytes = skinny.measure_device(device)
    return Bench(device, torch.bfloat16, 12, num_sms, shared_bytes, 4e-3, measure_copy_gbs())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="", help="comma-separated names; all unless given")
    parser.add_argument("--decoders", default="", help=f"comma-separated decoders of {', '.join(DECODERS)}")
    parser.add_argument("--rows", default="", help="comma-separated numbers of rows of x; 1,4,16,32,64 unless given")
    parser.add_argument("--budget-s", type=float, default=100.0, help="seconds for compiling and timing")
    parser.add_argument("--write", action="store_true", help="renew the table of such devices in kernels/tables")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU under TRITON_INTERPRET=1")
    arguments = parser.parse_args()
    known = DRY_SHAPES if arguments.dry else SHAPES | DECODER_SHAPES
    wanted = arguments.shapes.split(",") if arguments.shapes else []
    for name in arguments.decoders.split(",") if arguments.decoders else []:
        wanted += [shape for shape in DECODER_SHAPES if shape.startswith(f"{name}.")]
    arguments.shapes = wanted or list(DRY_SHAPES if arguments.dry else SHAPES)
    rows = arguments.rows or ("1,17" if arguments.dry else "1,4,16,32,64")
    arguments.rows = [int(number) for number in rows.split(",")]
    unknown = [name for name in arguments.shapes if name not in known]
    if unknown:
        parser.error(f"--shapes: {', '.join(unknown)} is none of {', '.join(known)}")
    if arguments.write and arguments.dry:
        parser.error("--write and --dry exclude each other: what runs interpreted measures nothing")
    arguments.shapes = {name: known[name] for name in arguments.shapes}
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    start_s = time.perf_counter()
    torch.manual_seed(0)
    bench = create_bench(arguments.dry)
    products = {
        name: [Product(m, n, k, name in GATED) for m in arguments.rows] for name, (n, k) in arguments.shapes.items()
    }
    candidates = {
        product: choose_candidates(bench, product)[: 3 if arguments.dry else None]
        for of_shape in products.values()
        for product in of_shape
    }
    if not arguments.dry:
        compile_all(bench, candidates)
    results: list[Result] = []
    for shape, (n, k) in arguments.shapes.items():
        number = max(bench.num_weights, 0 if arguments.dry else -(-BEYOND_L2_BYTES // (2 * n * k)))
        weights = [torch.randn(n, k, dtype=bench.dtype, device=bench.device) for _ in range(number)]
        for product in products[shape]:
            # Time goes to products by turns, so that an early one that needs less leaves more to the others.
            left_s = start_s + arguments.budget_s - time.perf_counter()
            end_s = time.perf_counter() + left_s / (len(candidates) - len(results))
            results.append(try_shape(bench, shape, product, weights, candidates[product], end_s))
            print(results[-1].describe(bench.copy_gbs), flush=True)
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()  # the graphs' pools
        del weights
    if arguments.write:
        print(f"written: {write_table(bench, results)}")
    print_report(bench, results)


def write_table(bench: Bench, results: list[Result]) -> Path:
    """Renew the lines that were measured in the table of such devices, and keep the others; each says where from."""
    path = TABLES / f"products_{bench.num_sms}sm.json"
    table = json.loads(path.read_text("utf-8")) if path.exists() else {"plain": [], "gated": []}
    name, date = torch.cuda.get_device_name(bench.device), datetime.now(UTC).date()
    measured = f"{name}, torch {torch.__version__}, Triton {version('triton')}, {date}"
    for result in results:
        m, n, k, is_gated = astuple(result.product)
        line = {"rows": m, "n": n, "k": k, **asdict(result.config), "measured": measured}
        kind = "gated" if is_gated else "plain"
        kept = [old for old in table[kind] if (old["rows"], old["n"], old["k"]) != (m, n, k)]
        table[kind] = sorted([*kept, line], key=lambda row: (row["n"], row["k"], row["rows"]))
    entries: list[str] = []
    for kind in ("plain", "gated"):
        lines = ",\n".join(f"    {json.dumps(line)}" for line in table[kind])
        entries.append(f'  "{kind}": [\n{lines}\n  ]')
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n", "utf-8")
    return path


def print_report(bench: Bench, results: list[Result]) -> None:
    """One JSON line of all that was found."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    best = [
        {
            "shape": result.shape, **asdict(result.product), "config": format_config(result.config),
            "us": round(result.us, 2), "cublas_us": round(result.cublas_us, 2), "rule_us": round(result.rule_us, 2),
            "gbs": round(result.gbs), "copy_ratio": round(result.gbs / bench.copy_gbs, 3), "error": result.error,
        }
        for result in results
    ]  # fmt: skip
    versions = {"torch": torch.__version__, "triton": version("triton"), "commit": commit.stdout.strip()}
    head = {"benchmark": "skinny", "device": describe_device(bench), "copy_gbs": round(bench.copy_gbs), **versions}
    print(json.dumps({**head, "best": best}))


def describe_device(bench: Bench) -> str:
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "the CPU, interpreted"
    return f"{name} ({bench.num_sms} multiprocessors)"


if __name__ == "__main__":
    main()
