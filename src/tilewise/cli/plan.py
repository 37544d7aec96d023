"""`tilewise plan`: what a model takes on a GPU, and which settings make it fit, without loading it."""

import argparse
import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING

from tilewise.cli.flags import ENGINE_HELP, given_flags, to_argv
from tilewise.config import DeviceConfig, EngineConfig
from tilewise.errors import CapacityError, ConfigError
from tilewise.plan import CONTEXT_BYTES, Fit, fit_memory

if TYPE_CHECKING:
    from rich.table import Table

_GIB = 1 << 30
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_bytes(text: str) -> int:
    """Read a size: `80GiB`, `80G`, `81559MiB` or plain bytes; every unit is a power of 1024.

    Raises:
        ConfigError: it is no size.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size <= 0:
        raise ConfigError(f"{text!r:.50} is no size; write for instance 24GiB, 80GiB or 81559MiB.", param="gpu")
    return size


def print_plan(args: argparse.Namespace) -> None:
    """Print the plan; one that needs other settings says which, and one that cannot fit ends with status 2.

    Raises:
        CapacityError: no setting makes the model fit.
    """
    from tilewise.checkpoint.hf_config import load_model_config
    from tilewise.checkpoint.hub import find_model

    if args.gpu is None:
        raise ConfigError("The GPU's memory is missing; add for instance --gpu 80GiB or --gpu 24GiB.", param="gpu")
    device_bytes = parse_bytes(args.gpu)
    config = EngineConfig.from_options(given_flags(args, ENGINE_HELP))
    folder = find_model(args.model, revision=config.revision, download_dir=config.download_dir, has_weights=False)
    fit = fit_memory(config, load_model_config(folder), DeviceConfig("cuda"), device_bytes)
    if args.json:
        print(json.dumps(describe(fit, device_bytes)))
    elif fit.num_blocks:
        from rich.console import Console

        console = Console(highlight=False)
        console.print(_create_table(fit, device_bytes))
        for line in _conclude(fit):
            console.print(line, soft_wrap=True)
    if not fit.num_blocks:
        raise CapacityError(
            f"It does not fit in {device_bytes / _GIB:.1f} GiB, not even with the smallest of the settings left open: "
            f"{fit.missing_bytes / _GIB:.1f} GiB are missing (weights alone take {fit.memory.weights / _GIB:.1f} GiB). "
            f"{_remedy(config)}"
        )


def describe(fit: Fit, device_bytes: int) -> dict[str, object]:
    """Return the plan as one JSON object; sizes in bytes."""
    return {
        "fits": fit.num_blocks > 0,
        "device_bytes": device_bytes,
        "total_bytes": fit.total_bytes,
        **asdict(fit.memory),
        "num_blocks": fit.num_blocks,
        "capacity_tokens": fit.capacity,
        "session_len": min(fit.config.session_len, fit.capacity),
        "missing_bytes": fit.missing_bytes,
        "changes": dict(fit.changes),
    }


def _create_table(fit: Fit, device_bytes: int) -> "Table":
    from rich.table import Table

    memory, config = fit.memory, fit.config
    step_bytes = memory.workspace - memory.picture_workspace
    kv_tokens = f"{fit.capacity:,} tokens of {config.kv_bytes_per_token:,} bytes"
    rows = [
        ("vision tower", memory.tower, f"weights, {config.dtype}"),
        ("projector", memory.projector, "weights"),
        ("language model", memory.decoder, "weights"),
        ("pictures", memory.picture_workspace, "cutting the largest accepted one"),
        ("workspace", step_bytes, f"{config.max_step_tiles} tiles or {config.max_step_tokens} tokens a step"),
        ("graphs", memory.graphs, f"{config.graphs.number if config.graphs else 0} captured steps"),
        ("picture cache", memory.image_cache, f"{memory.num_tile_rows} tiles"),
        ("KV cache", fit.num_blocks * memory.kv_block, kv_tokens),
        ("driver and libraries", CONTEXT_BYTES, "measured on an H100"),
    ]
    table = Table("part", "GiB", "what", title=f"{config.model.architecture} on {device_bytes / _GIB:.1f} GiB")
    table.columns[1].justify = "right"
    for part, size, what in rows:
        table.add_row(part, f"{size / _GIB:.2f}", what)
    table.add_section()
    free = f"{(device_bytes - fit.total_bytes) / _GIB:.2f} stay free"
    table.add_row("total", f"{fit.total_bytes / _GIB:.2f}", free)
    return table


def _remedy(config: EngineConfig) -> str:
    """Say what to change: the caller's own settings were not."""
    defaults = EngineConfig()
    names = ("kv_cache_bytes", "image_cache_bytes", "max_prefill_tiles", "max_prefill_token_num", "session_len")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(config, name) != getattr(defaults, name)]
    return f"Lower {', '.join(given)}, or use a larger GPU." if given else "Use a larger GPU."


def _conclude(fit: Fit) -> list[str]:
    session_len = min(fit.config.session_len, fit.capacity)
    at_once = min(fit.num_blocks // -(-session_len // fit.config.block_size), fit.config.max_batch_size)
    flags = " ".join(to_argv(fit.changes)).replace("=", " ")
    return [
        f"Sessions of up to {session_len:,} tokens; {at_once} of that length at once.",
        f"It fits with: {flags}" if flags else "It fits with the settings given.",
    ]
