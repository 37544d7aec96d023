"""How a product of few rows with a large weight is cut: as it was measured, else by rule.

The measured ones are data in `kernels/tables`, written by `benchmarks/skinny.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

MAX_ROWS = 64
MEASURED_ROWS = (1, 4, 16, 32, MAX_ROWS)
K_MULTIPLE = 128  # every block_k that is chosen divides K
LEAST_SHARED_KIB = 99  # 8.6, 8.9, 12.0, and whatever is unknown
_TABLES = Path(__file__).parents[1] / "tables"
_MAX_SPLITS = 8
# Of the weight, one program's: read in about the time in which two shares meet in L2 (computed, not measured).
_LEAST_SHARE_BYTES = 48 << 10


@dataclass(frozen=True, slots=True)
class ProductConfig:
    """How the kernel cuts a product: `block_n` weight rows by `block_k` columns at a time, K in `num_splits` shares.

    Of a gated product's `block_n` rows every other one is gate's, the rest are up's.

    `weight_first` multiplies weight by x instead of x by weight: on Hopper 64 weight rows then fill the wide matrix
    instruction, which reads them from shared memory without a detour over registers.
    """

    block_n: int
    block_k: int
    num_splits: int
    num_warps: int
    num_stages: int
    weight_first: bool = False

    def count_shared_bytes(self, m: int) -> int:
        """Return the shared memory of a program that multiplies `m` rows of two bytes an element."""
        return self.num_stages * (self.block_n + pad_rows(m)) * self.block_k * 2


@dataclass(frozen=True, slots=True)
class ConfigTable:
    """What was measured on one kind of device: (largest M, N, K) -> config, without and with SwiGLU in the product."""

    plain: Mapping[tuple[int, int, int], ProductConfig]
    gated: Mapping[tuple[int, int, int], ProductConfig]

    def find(self, m: int, n: int, k: int, is_gated: bool) -> ProductConfig | None:
        """Return the config of the number of rows next to `m` that is measured; None where it was not."""
        table = self.gated if is_gated else self.plain
        return table.get((min(rows for rows in MEASURED_ROWS if rows >= m), n, k))


@cache
def load_table(num_sms: int) -> ConfigTable:
    """Read what was measured on devices of so many multiprocessors, or an empty table."""
    path = _TABLES / f"products_{num_sms}sm.json"
    data = json.loads(path.read_text("utf-8")) if path.exists() else {"plain": [], "gated": []}
    plain, gated = ({_read_key(row): _read_config(row) for row in data[kind]} for kind in ("plain", "gated"))
    return ConfigTable(plain, gated)


def _read_key(row: Mapping[str, Any]) -> tuple[int, int, int]:
    return row["rows"], row["n"], row["k"]


def _read_config(row: Mapping[str, Any]) -> ProductConfig:
    return ProductConfig(**{field.name: row[field.name] for field in fields(ProductConfig)})


def pad_rows(m: int) -> int:
    """Return the rows of x that the kernel multiplies: 16, 32 or 64."""
    return 16 if m <= 16 else 32 if m <= 32 else 64


@lru_cache(maxsize=4096)  # asked anew at every product that is launched by itself
def choose_config(
    m: int, n: int, k: int, num_sms: int, shared_bytes: int = LEAST_SHARED_KIB << 10, is_gated: bool = False
) -> ProductConfig:
    """Choose how to multiply x (m, k) with a weight (n, k): as measured, else by rule.

    Args:
        m: Rows of x, at most MAX_ROWS.
        n: Rows of the weight, of gate and up together.
        k: Columns of both, a multiple of K_MULTIPLE.
        num_sms: Multiprocessors of the device.
        shared_bytes: Shared memory that a program may use.
        is_gated: Whether the product is that of `multiply_gated`.
    """
    measured = load_table(num_sms).find(m, n, k, is_gated)
    if measured is not None and measured.count_shared_bytes(m) <= shared_bytes:
        return measured
    rows = pad_rows(m)
    # A narrow tile reads x more often than it saves: x comes from L2 once a tile, so a config has no fewer rows than x.
    widths = (128, 64) if rows == 64 else (64,) if rows == 32 else (64, 32, 16)
    block_n = next((width for width in widths if -(-n // width) >= num_sms), widths[-1])
    block_k = 256 if block_n <= 32 and k % 256 == 0 else 128
    num_splits = choose_num_splits(-(-n // block_n), block_n, k // block_k, block_k, num_sms)
    # Two programs a multiprocessor: one computes its last block while the other loads.
    num_stages = shared_bytes // 2 // ((block_n + rows) * block_k * 2)
    num_warps = 2 if block_n == 16 else 4  # as every such tile that won a measurement
    return ProductConfig(block_n, block_k, num_splits, num_warps, num_stages=max(2, min(5, num_stages)))


def choose_num_splits(num_tiles: int, block_n: int, num_blocks: int, block_k: int, num_sms: int) -> int:
    """Choose into how many shares of whole blocks K is cut, so that a narrow weight keeps every multiprocessor busy."""
    most = max(1, block_n * num_blocks * block_k * 2 // _LEAST_SHARE_BYTES)
    counts = [count for count in range(1, min(most, _MAX_SPLITS) + 1) if not _leaves_a_share_empty(count, num_blocks)]
    return next((count for count in counts if num_tiles * count >= num_sms), counts[-1])


def _leaves_a_share_empty(count: int, num_blocks: int) -> bool:
    share = -(-num_blocks // count)
    return share * (count - 1) >= num_blocks
