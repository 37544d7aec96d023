"""What each figure is held against, and the table for people.

Every bar is of InternVL-Chat-V1-5 (26B, random weights in the real shapes) on one H100 80GB; on another GPU only the
ratios say something.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

Figures = dict[str, float | str]

SOURCE = (
    "wanted, limit and best other: InternVL-Chat-V1-5 (26B) on one H100 80GB HBM3 (3.03 TB/s, 798 TFLOP/s bf16 in a "
    "burst), torch 2.11.0+cu130. Others measured there on 2026-11-22; limits computed from the copy rate and the "
    "burst to sustained matrix rate. On another GPU compare ratios only."
)
_VLLM, _VLLM_FP8, _TURBOMIND = "vLLM 0.25.1 bf16", "vLLM 0.25.1 fp8", "LMDeploy 0.18.0 TurboMind bf16"


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure has to be, what the hardware allows (easiest last), and what the best other engine does."""

    wanted: float | None = None
    limit: tuple[float, ...] = ()
    other: float | None = None
    name: str = ""


_ANY_WEIGHTS = {
    "start.first_answer_s": Bar(wanted=25, other=27, name=_TURBOMIND),
    "again.first_token_ms": Bar(wanted=25, other=34, name=_VLLM),
    "stall.quiet_p50_ms": Bar(other=15.7, name=_VLLM),
    "stall.quiet_tokens_per_s": Bar(other=1024, name=_VLLM),
    "stall.busy_p50_ms": Bar(other=16.3, name=_VLLM),
    "stall.busy_p90_ms": Bar(other=159, name=_VLLM),
    "stall.busy_p99_ms": Bar(wanted=60, other=331, name=_VLLM),
    "stall.busy_max_ms": Bar(wanted=100, other=487, name=_VLLM),
    "stall.busy_tokens_per_s": Bar(wanted=600, other=337, name=_VLLM),
    "stall.picture_first_token_ms": Bar(wanted=600, other=710, name=_VLLM),
    "memory.unanswered": Bar(wanted=0),
    "memory.allocated_percent": Bar(wanted=100),
    "memory.reserved_percent": Bar(wanted=100),
}
BARS: Mapping[str, Mapping[str, Bar]] = {
    "bf16": {
        **_ANY_WEIGHTS,
        "seed.first_token_ms": Bar(250, (194, 226), 338, _TURBOMIND),
        "seed.per_token_ms": Bar(14.0, (13.0,), 15.6, _VLLM),
        "mixed.requests_per_s": Bar(3.5, (3.9,), 2.97, _TURBOMIND),
        "mixed.tokens_per_s": Bar(other=380, name=_TURBOMIND),
    },
    "fp8": {
        **_ANY_WEIGHTS,
        "seed.first_token_ms": Bar(155, (101, 130), 344, _VLLM_FP8),
        "seed.per_token_ms": Bar(7.8, (6.7,), 9.20, _VLLM_FP8),
        "mixed.requests_per_s": Bar(5.5, (6.3,), 3.65, _VLLM_FP8),
        "mixed.tokens_per_s": Bar(other=467, name=_VLLM_FP8),
    },
    "w4a16": {
        **_ANY_WEIGHTS,
        "seed.first_token_ms": Bar(160, (101, 130)),
        "seed.per_token_ms": Bar(5.0, (3.7,)),
        "mixed.requests_per_s": Bar(4.8),
    },
}
# Key, unit and what it is, in the table's order; a figure that was not taken has no row.
ROWS: tuple[tuple[str, str, str], ...] = (
    ("start.loaded_s", "s", "process start to loaded"),
    ("start.captured_s", "s", "process start to graphs captured"),
    ("start.first_answer_s", "s", "process start to the first answer"),
    ("start.host_anonymous_mib", "MiB", "peak host memory, anonymous"),
    ("start.host_resident_mib", "MiB", "peak host memory, mapped files included"),
    ("seed.first_token_ms", "ms", "one picture: first token"),
    ("seed.per_token_ms", "ms", "one picture: per token after"),
    ("seed.whole_ms", "ms", "one picture: whole answer"),
    ("again.first_token_ms", "ms", "the same picture again: first token"),
    ("mixed.requests_per_s", "1/s", "mixed batch: requests"),
    ("mixed.tokens_per_s", "1/s", "mixed batch: tokens"),
    ("mixed.seconds", "s", "mixed batch: all of it"),
    ("mixed.tower_s", "s", "mixed batch: tower"),
    ("mixed.prefill_s", "s", "mixed batch: prefill"),
    ("mixed.decode_s", "s", "mixed batch: decode"),
    ("mixed.preemptions", "", "mixed batch: preemptions"),
    ("mixed.prepare_cpu_s", "s", "mixed batch: CPU time preparing requests"),
    ("stall.quiet_p50_ms", "ms", "streams alone: gap p50"),
    ("stall.quiet_tokens_per_s", "1/s", "streams alone: tokens"),
    ("stall.busy_p50_ms", "ms", "streams and pictures: gap p50"),
    ("stall.busy_p90_ms", "ms", "streams and pictures: gap p90"),
    ("stall.busy_p99_ms", "ms", "streams and pictures: gap p99"),
    ("stall.busy_max_ms", "ms", "streams and pictures: longest gap"),
    ("stall.busy_tokens_per_s", "1/s", "streams and pictures: tokens"),
    ("stall.picture_first_token_ms", "ms", "streams and pictures: a picture's first token"),
    ("stall.streams_ended_early", "", "streams that ended before the last picture"),
    ("memory.requests", "", "large pictures: requests"),
    ("memory.unanswered", "", "large pictures: not answered"),
    ("memory.seconds", "s", "large pictures: all of it"),
    ("memory.planned_mib", "MiB", "memory planned, driver included"),
    ("memory.allocated_percent", "%", "allocated at the peak, driver included, of the plan"),
    ("memory.reserved_percent", "%", "reserved at the peak, driver included, of the plan"),
    ("http.offline_first_token_ms", "ms", "JPEG pictures, offline: first token"),
    ("http.server_first_token_ms", "ms", "JPEG pictures, over HTTP: first token"),
    ("http.added_first_token_ms", "ms", "added by HTTP to the first token"),
    ("http.offline_requests_per_s", "1/s", "JPEG pictures, offline: requests"),
    ("http.server_requests_per_s", "1/s", "JPEG pictures, over HTTP: requests"),
    ("http.rate_percent", "%", "rate over HTTP, of the offline one"),
    ("http.left_after_close_mib", "MiB", "still reserved once the pipeline was closed"),
)


def is_rate(key: str) -> bool:
    """More is better."""
    return key.endswith("_per_s")


def compare(figures: Figures, bars: Mapping[str, Bar]) -> dict[str, dict[str, float | bool]]:
    """How near each figure is to its limit, 1 being there, how many times the best other's, and if it is as wanted."""
    compared: dict[str, dict[str, float | bool]] = {}
    for key, bar in bars.items():
        ours = figures.get(key)
        if not isinstance(ours, (int, float)):
            continue
        said = compared[key] = {}
        if bar.wanted is not None:
            said["is_as_wanted"] = ours >= bar.wanted if is_rate(key) else ours <= bar.wanted
        for name, theirs in (("of_limit", bar.limit[-1:]), ("times_best_other", (bar.other,))):
            for value in theirs:
                if value and ours:
                    said[name] = round(ours / value if is_rate(key) else value / ours, 3)
    return compared


def print_table(figures: Figures, bars: Mapping[str, Bar]) -> None:
    """Print what was measured; with bars, beside them."""
    table = Table(title_justify="left")
    table.add_column("what")
    table.add_column("ours", justify="right")
    table.add_column("unit")
    if bars:
        for heading in ("wanted", "limit", "of limit", "best other"):
            table.add_column(heading, justify="right")
        table.add_column("times better")
        table.add_column("which")
    compared = compare(figures, bars)
    for key, unit, what in ROWS:
        if key not in figures:
            continue
        cells = [what, _shown(figures[key]), unit]
        if bars:
            cells += _describe(key, bars.get(key, Bar()), compared.get(key, {}))
        table.add_row(*cells)
    width = max(Console().width, 150 if bars else 80)  # a pipe has no width, and must not break lines
    Console(width=width).print(table)
    if bars:
        print(SOURCE)


def _describe(key: str, bar: Bar, compared: Mapping[str, float | bool]) -> list[str]:
    wanted = ""
    if bar.wanted is not None:
        wanted = f"{'>=' if is_rate(key) else '<='} {_shown(bar.wanted)} {'✓' if compared.get('is_as_wanted') else '✗'}"
    times = f"{compared['times_best_other']:.2f}" if "times_best_other" in compared else ""
    limit = "-".join(map(_shown, bar.limit))
    share = f"{compared['of_limit']:.0%}" if "of_limit" in compared else ""
    return [wanted, limit, share, "" if bar.other is None else _shown(bar.other), times, bar.name]


def _shown(value: float | str) -> str:
    if isinstance(value, str) or value == int(value):
        return f"{value:,.0f}" if isinstance(value, (int, float)) else value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"
