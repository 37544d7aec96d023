"""What a model is and how an engine runs it: frozen values, resolved once into new ones.

`ModelConfig` and its parts are facts of a checkpoint, whatever dialect its config.json spoke.
`EngineConfig` is the user's wish with LMDeploy's field names; `resolve` turns it, a model and a device into
the same type with no open field. Nothing here touches disk or a device.
"""

import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from tilewise.errors import ConfigError

MIB = 1 << 20
CPU_KV_CACHE_BYTES = 512 * MIB
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

NormType = Literal["rms_norm", "layer_norm"]


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """InternViT as flags: the 6B and the 300M differ in these fields only."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    image_size: int = 448
    patch_size: int = 14
    norm_type: NormType = "rms_norm"
    norm_eps: float = 1e-6
    use_qk_norm: bool = True
    use_qkv_bias: bool = False

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_patches(self) -> int:
        """Patches of one tile, the class token not counted."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Rotary scaling of a checkpoint: `linear` divides positions, `dynamic` grows the base past the limit."""

    type: Literal["linear", "dynamic"]
    factor: float


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder-only language model; `family` names its row in the decoder's table."""

    family: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    use_bias: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One servable checkpoint.

    `dtype` is the checkpoint's own. `select_layer` indexes the tower's hidden states, embeddings first.
    `is_random` marks weights that were never trained: answers are then withheld, not shown.
    """

    architecture: str
    vision: VisionConfig
    decoder: DecoderConfig
    dtype: str = "bfloat16"
    downsample_ratio: float = 0.5
    pixel_shuffle_version: Literal["v1", "v2"] = "v2"
    select_layer: int = -1
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 12
    use_thumbnail: bool = True
    template: str | None = None
    is_random: bool = False

    @property
    def tokens_per_tile(self) -> int:
        """Prompt positions that one tile fills after pixel shuffle."""
        return round(self.vision.num_patches * self.downsample_ratio**2)

    @property
    def projector_input_size(self) -> int:
        """Channels of one position after pixel shuffle."""
        return round(self.vision.hidden_size / self.downsample_ratio**2)


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """The device an engine runs on, as far as configuration cares. `capability` is (0, 0) on the CPU."""

    type: Literal["cpu", "cuda"]
    index: int = 0
    capability: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """The name torch knows it by."""
        return self.type if self.type == "cpu" else f"{self.type}:{self.index}"


# Work of a step beside decodes, in prompt tokens: a tile and its tokens, but not two.
# PERF: with 16 decodes 46 ms of a 26B on an H100 (2026-11-28).
BUSY_TOKENS = 800
# Such a step has 272 tokens. PERF: padded to 384 it took 48 ms on an H200, to 288 46 on an H100 (2026-11-28).
_FINE_UP_TO, _COARSE_FROM = 320, 1024
_MAX_CAPTURED_TILES = 16


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


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """Which steps are captured: numbers of decodes, of tokens where prompts take part, and of tiles."""

    decodes: tuple[int, ...]
    mixed: tuple[int, ...]
    tiles: tuple[int, ...]

    @property
    def number(self) -> int:
        """Graphs in all."""
        return len(self.decodes) + len(self.mixed) + len(self.tiles)


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """An `EngineConfig` with every choice made for one model on one device: nothing is `None` or `auto`."""

    model: ModelConfig
    device: DeviceConfig
    dtype: str
    session_len: int
    max_batch_size: int
    block_size: int
    max_step_tokens: int
    max_step_tiles: int
    use_prefix_cache: bool
    rope_base: float
    rope_position_scale: float
    load_format: Literal["auto", "dummy"]
    cache_share: float
    kv_cache_bytes: int | None
    image_cache_bytes: int
    max_busy_work: int | None = None
    graphs: GraphSizes | None = None
    tensor_parallel_size: int = 1

    @property
    def use_cuda_graphs(self) -> bool:
        """Small steps are captured."""
        return self.graphs is not None

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes over all layers, on one rank."""
        decoder = self.model.decoder
        heads = decoder.num_kv_heads // self.tensor_parallel_size
        return 2 * decoder.num_layers * heads * decoder.head_dim * DTYPE_BYTES[self.dtype]


def _resolve_rope(factor: float, decoder: DecoderConfig, session_len: int) -> tuple[float, float]:
    """Return (base, position scale): one pair for the engine's life, so that cached keys stay valid.

    Source: NTK-aware scaling as in transformers' dynamic rope, with the sequence length fixed at `session_len`.
    """
    limit, scaling = decoder.max_position_embeddings, decoder.rope_scaling
    divisor = scaling.factor if scaling is not None and scaling.type == "linear" else None
    if factor and divisor:
        raise ConfigError(
            f"rope_scaling_factor={factor} extends the rotary base, and this model divides its positions by "
            f"{divisor:g} already; leave rope_scaling_factor=0.",
            param="rope_scaling_factor",
        )
    if session_len > limit and factor < 1.0:
        remedy = "" if divisor else ", or set rope_scaling_factor (for instance 2.0) to extend the rotary base"
        raise ConfigError(
            f"session_len={session_len} is beyond the {limit} positions that the model was trained for; lower it"
            f"{remedy}.",
            param="session_len",
        )
    if factor and session_len <= limit:
        raise ConfigError(
            f"rope_scaling_factor={factor} changes nothing up to {limit} positions; "
            "set session_len beyond them too, or leave rope_scaling_factor out.",
            param="rope_scaling_factor",
        )
    if not factor:
        return decoder.rope_theta, 1.0 / (divisor or 1.0)
    growth = factor * session_len / limit - (factor - 1.0)
    return decoder.rope_theta * growth ** (decoder.head_dim / (decoder.head_dim - 2)), 1.0


def resolve(config: EngineConfig, model: ModelConfig, device: DeviceConfig) -> ResolvedConfig:
    """Make every open choice of `config` for `model` on `device`.

    Raises:
        ConfigError: the wish contradicts the model or the device.
    """
    on_cpu = device.type == "cpu"
    session_len = config.session_len or model.decoder.max_position_embeddings
    rope_base, rope_position_scale = _resolve_rope(config.rope_scaling_factor, model.decoder, session_len)
    image_cache_bytes = 64 * MIB if on_cpu else 512 * MIB
    max_step_tokens = config.max_prefill_token_num or max(1024 if on_cpu else 2048, config.max_batch_size)
    if max_step_tokens < config.max_batch_size:
        raise ConfigError(
            f"max_prefill_token_num={max_step_tokens} is below max_batch_size={config.max_batch_size}, and every "
            "running sequence takes a token of a step; raise the one or lower the other.",
            param="max_prefill_token_num",
        )
    max_step_tiles = config.max_prefill_tiles or (1 if on_cpu else 8)
    graphs = None
    if config.use_cuda_graphs and not on_cpu:
        graphs = _choose_graph_sizes(config.max_batch_size, max_step_tokens, max_step_tiles)
    return ResolvedConfig(
        model=replace(model, is_random=True) if config.load_format == "dummy" else model,
        device=device,
        dtype=config.dtype if config.dtype != "auto" else "float32" if on_cpu else model.dtype,
        session_len=session_len,
        max_batch_size=config.max_batch_size,
        block_size=config.cache_block_seq_len,
        max_step_tokens=max_step_tokens,
        max_step_tiles=max_step_tiles,
        use_prefix_cache=config.enable_prefix_caching,
        rope_base=rope_base,
        rope_position_scale=rope_position_scale,
        load_format=config.load_format,
        cache_share=config.cache_max_entry_count,
        kv_cache_bytes=config.kv_cache_bytes or (CPU_KV_CACHE_BYTES if on_cpu else None),
        image_cache_bytes=image_cache_bytes if config.image_cache_bytes is None else config.image_cache_bytes,
        max_busy_work=config.max_busy_token_num or (None if on_cpu else BUSY_TOKENS),
        graphs=graphs,
        tensor_parallel_size=config.tp,
    )


def _choose_graph_sizes(max_batch_size: int, max_tokens: int, max_tiles: int) -> GraphSizes:
    """Choose sizes for every step with decodes: larger ones, too, are believed to be launched slower than they run.

    What lies between two sizes is padded, which costs little where weights are read, and less the larger a step is.
    """
    sizes = (1, 2, 4, 8, *range(16, max_batch_size, 16))
    decodes = (*(size for size in sizes if size < max_batch_size), max_batch_size)
    mixed = [64]
    while mixed[-1] < max_tokens:
        coarse = max(128, mixed[-1] // 8 // 128 * 128)
        mixed.append(mixed[-1] + (32 if mixed[-1] < _FINE_UP_TO else 64 if mixed[-1] < _COARSE_FROM else coarse))
    return GraphSizes(decodes, tuple(mixed), tuple(range(1, min(max_tiles, _MAX_CAPTURED_TILES) + 1)))
