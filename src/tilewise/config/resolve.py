"""An `EngineConfig` with every choice made for one model on one device: no field stays open."""

from dataclasses import dataclass, replace
from typing import Literal

from tilewise.config.engine import EngineConfig
from tilewise.config.model import DTYPE_BYTES, DecoderConfig, ModelConfig
from tilewise.errors import ConfigError

MIB = 1 << 20


CPU_KV_CACHE_BYTES = 512 * MIB


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


# Work of a step beside decodes, in prompt tokens: of the 26B a tile and its tokens, but not two.
# PERF: with 16 decodes 46 ms of a 26B on an H100 (2026-11-28).
BUSY_TOKENS = 800
# The same in multiplications. A larger model does no more of them, and a smaller one no fewer than a third, so that a
# step lasts about as long as its readers do not notice, and does not end before it was worth launching (computed).
_MOST_BUSY_MULTIPLICATIONS = 14_980_000_000_000


# Such a step has 272 tokens. PERF: padded to 384 it took 48 ms on an H200, to 288 46 on an H100 (2026-11-28).
_FINE_UP_TO, _COARSE_FROM = 320, 1024


_MAX_CAPTURED_TILES = 16


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
    window = model.decoder.sliding_window
    if window is not None and session_len > window:
        raise ConfigError(
            f"session_len={session_len} is beyond the sliding window of {window} positions that this model's layers "
            "see; lower it.",
            param="session_len",
        )
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
        max_busy_work=config.max_busy_token_num or (None if on_cpu else _choose_busy_tokens(model.decoder)),
        graphs=graphs,
        tensor_parallel_size=config.tp,
    )


def _choose_busy_tokens(decoder: DecoderConfig) -> int:
    most = _MOST_BUSY_MULTIPLICATIONS // (decoder.num_layers * decoder.layer_matrix_size)
    return max(1, min(max(BUSY_TOKENS, most // 3), most))


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
