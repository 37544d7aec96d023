"""How a user wants an engine to run: `EngineConfig` and `ChatTemplateConfig`, with LMDeploy's field names."""

import difflib
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from tilewise.config.model import DTYPE_BYTES
from tilewise.errors import ConfigError


def _is_count(value: object, low: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**62


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low < value < high


def _is_scaling(value: object) -> bool:
    return value in (0.0, 1.0) or _is_number(value, 1.0, math.inf)


# What a field may be, as a test and in words.
Allowed = tuple[Callable[[Any], bool], str]
_OPTIONAL_COUNT: Allowed = (lambda value: value is None or _is_count(value), "a whole number from 1 up")
_OPTIONAL_TEXT: Allowed = (lambda value: value is None or isinstance(value, str), "a string or None")
_ALLOWED: dict[str, Allowed] = {
    "tp": (lambda value: value == 1, "1: this version has no tensor parallelism; leave tp=1"),
    "session_len": _OPTIONAL_COUNT,
    "max_batch_size": (_is_count, "a whole number from 1 up"),
    "cache_max_entry_count": (
        lambda value: _is_number(value, 0, 1),
        "a share in (0, 1); use kv_cache_bytes for a size",
    ),
    "cache_block_seq_len": (lambda value: _is_count(value) and value in (16, 32, 64, 128), "16, 32, 64 or 128"),
    "quant_policy": (lambda value: value == 0, "0: this version has no quantised KV cache"),
    "rope_scaling_factor": (_is_scaling, "0 (off) or a finite number from 1 up"),
    "max_prefill_token_num": _OPTIONAL_COUNT,
    "model_format": (lambda value: value in (None, "hf"), "'hf'; other formats are not available in this version"),
    "dtype": (lambda value: value in ("auto", *DTYPE_BYTES), f"one of auto, {', '.join(DTYPE_BYTES)}"),
    "enable_prefix_caching": (lambda value: isinstance(value, bool), "True or False"),
    "download_dir": (lambda value: value is None or isinstance(value, (str, os.PathLike)), "a path"),
    "revision": _OPTIONAL_TEXT,
    "device": (lambda value: isinstance(value, str), "auto, cpu or cuda:N"),
    "load_format": (lambda value: value in ("auto", "dummy"), "'auto' or 'dummy'"),
    "kv_cache_bytes": _OPTIONAL_COUNT,
    "image_cache_bytes": (lambda value: value is None or _is_count(value, 0), "a whole number from 0 up"),
    "max_prefill_tiles": _OPTIONAL_COUNT,
    "max_busy_token_num": _OPTIONAL_COUNT,
    "use_cuda_graphs": (lambda value: isinstance(value, bool), "True or False"),
}


def check_fields(config: object, allowed: Mapping[str, Allowed]) -> None:
    """Hold each field to what it may be.

    Raises:
        ConfigError: one is not; `param` names it.
    """
    for name, (is_allowed, wanted) in allowed.items():
        value = getattr(config, name)
        if not is_allowed(value):
            raise ConfigError(f"{name}={value!r:.80} must be {wanted}.", param=name)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to run an engine; `None` means "choose for me", and `resolve` chooses.

    The first block keeps LMDeploy's names. `cache_max_entry_count` is the share of the memory left after
    weights, tower workspace and graphs that KV blocks may take; on the CPU the budget is `kv_cache_bytes`.
    `max_prefill_tiles` bounds the tiles that the tower sees at once. `session_len` counts prompt and answer.
    `max_busy_token_num` bounds the work of a step in which streamed answers are decoded, in prompt tokens, of which a
    tile counts as many as its arithmetic: smaller steps hold their readers up less, larger ones waste less. Answers
    that are asked for whole bound nothing.
    `use_cuda_graphs` captures steps at the start, one for each of many sizes: launching their kernels one by one takes
    longer than running them. Without a GPU, or where Triton cannot attend, there is nothing to capture.

    Raises:
        ConfigError: a field is outside its range or not available; `param` names it.
    """

    tp: int = 1
    session_len: int | None = None
    max_batch_size: int = 128
    cache_max_entry_count: float = 0.8
    cache_block_seq_len: int = 64
    quant_policy: int = 0
    rope_scaling_factor: float = 0.0
    max_prefill_token_num: int | None = None
    model_format: str | None = None
    dtype: str = "auto"
    enable_prefix_caching: bool = True
    download_dir: str | os.PathLike[str] | None = None
    revision: str | None = None

    device: str = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    kv_cache_bytes: int | None = None
    image_cache_bytes: int | None = None
    max_prefill_tiles: int | None = None
    max_busy_token_num: int | None = None
    use_cuda_graphs: bool = True

    def __post_init__(self) -> None:
        """Check every field that can be checked without a model."""
        check_fields(self, _ALLOWED)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "EngineConfig":
        """Build from keyword options, refusing unknown names with the nearest known one."""
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."
                raise ConfigError(f"Unknown engine option {name!r}.{hint}", param=name)
        return cls(**options)


# The names under which LMDeploy's users know it.
TurbomindEngineConfig = PytorchEngineConfig = EngineConfig


@dataclass(frozen=True, slots=True)
class ChatTemplateConfig:
    """Which prompt profile to use, and what to change in it: `None` keeps the profile's own.

    `model_name` names a profile (`internvl-internlm2`, `internvl-official`, …) or a JSON file of one.
    """

    model_name: str | None = None
    meta_instruction: str | None = None
    stop_words: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no text; the words are checked with the profile."""
        check_fields(self, {"model_name": _OPTIONAL_TEXT, "meta_instruction": _OPTIONAL_TEXT})


def read_log_level(level: object) -> int:
    """The number of a level of `logging` by its name.

    Raises:
        ConfigError: there is none of this name.
    """
    known = logging.getLevelNamesMapping()
    if not isinstance(level, str) or level.upper() not in known:
        text = f"log_level={level!r:.80} is unknown; choose DEBUG, INFO, WARNING or ERROR."
        raise ConfigError(text, param="log_level")
    return known[level.upper()]
