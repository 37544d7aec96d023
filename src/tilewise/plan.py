"""What takes how much memory, computed from the configuration alone before anything is allocated.

Weights are the checkpoint's own; padding and tables add at most 21 MB to a member of the family, whose sessions are as
long as its training's (computed: Qwen3's table of rotary positions). Workspaces are upper bounds of the activations
that live at once in one step, from the shapes at the step's budgets; the KV cache takes its share of what is left.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tilewise.config import (
    DTYPE_BYTES,
    MIB,
    DecoderConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    ResolvedConfig,
    VisionConfig,
    resolve,
)
from tilewise.errors import ConfigError

# Smallest session worth serving, in tokens: a picture of 13 tiles, a question and an answer.
SMALLEST_SESSION = 4096
# A share of memory buys no more than this: a small model's pool would only make bookkeeping slow.
MAX_BLOCKS = 1 << 16
# What the driver, cuBLAS and cuDNN take beside torch's allocations: 938 MiB on an H100 (torch 2.11, 2026-11-23).
CONTEXT_BYTES = 940 * MIB

_FP32_TEMPORARIES = 3 * 4  # bytes a channel that a norm holds in fp32 while it runs
# Source pixels and scratch of the largest accepted picture, 4 bytes a pixel in Pillow on the CPU; and the tiles that
# are cut ahead of their step.
_RESAMPLE_BYTES = 512 * MIB
# What a captured graph of so many layers keeps beside its tensors, with room: 48 of them take 4 MiB each in the 26B
# (1,142 MiB beside torch's allocations on an H200, 2026-11-28, against the 938 above without any). It keeps what each
# kernel is launched with, so that it grows with the layers.
_GRAPH_BYTES, _GRAPH_LAYERS = 8 * MIB, 48
_SAMPLER_BYTES = 2 * 4 + 5 * 8  # bytes a logit: fp32 and fp64 copies, and the order of a sort


@dataclass(frozen=True, slots=True)
class WeightCounts:
    """Parameters of each part."""

    tower: int
    projector: int
    decoder: int

    @property
    def total(self) -> int:
        """Parameters of the model."""
        return self.tower + self.projector + self.decoder


def _count_tower(config: VisionConfig, num_layers: int) -> int:
    width, inner = config.hidden_size, config.intermediate_size
    attention = 4 * width * width + width + (3 * width if config.use_qkv_bias else 0)
    mlp = 2 * width * inner + inner + width
    norms = (2 if config.norm_type == "rms_norm" else 4) * width + (2 * width if config.use_qk_norm else 0)
    embeddings = 3 * config.patch_size**2 * width + width + width + (1 + config.num_patches) * width
    return num_layers * (attention + mlp + norms + 2 * width) + embeddings


def _count_decoder(config: DecoderConfig) -> int:
    width, q, kv = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    biases = (q + 2 * kv if config.use_qkv_bias else 0) + (width if config.use_output_bias else 0)
    norms = 2 * width + (2 * config.head_dim if config.use_qk_norm else 0)
    layer = config.layer_matrix_size + biases + norms
    return config.num_layers * layer + _count_vocabulary(config) + width


def _count_vocabulary(config: DecoderConfig) -> int:
    num_tables = 1 if config.is_head_tied else 2
    return num_tables * config.vocab_size * config.hidden_size


def _count_normed(config: DecoderConfig) -> int:
    """Channels of a token that one call normalises at most: the stream's, or all queries and keys."""
    if not config.use_qk_norm:
        return config.hidden_size
    return max(config.hidden_size, (config.num_heads + config.num_kv_heads) * config.head_dim)


def count_weights(model: ModelConfig) -> WeightCounts:
    """Count the parameters that are loaded: tower layers behind `select_layer` are not."""
    vision, out = model.vision, model.decoder.hidden_size
    wide = model.projector_input_size
    projector = 2 * wide + wide * out + out + out * out + out
    used_layers = model.select_layer % (vision.num_layers + 1)
    return WeightCounts(_count_tower(vision, used_layers), projector, _count_decoder(model.decoder))


def count_tile_work(model: ModelConfig) -> int:
    """Say how many prompt tokens cost as much arithmetic as a tile: 321 in the 26B (computed)."""
    vision, decoder, counts = model.vision, model.decoder, count_weights(model)
    positions = 1 + vision.num_patches
    used_layers = model.select_layer % (vision.num_layers + 1)
    attention = 4 * positions**2 * vision.hidden_size * used_layers
    tile = 2 * counts.tower * positions + attention + 2 * counts.projector * model.tokens_per_tile
    return round(tile / (2 * (counts.decoder - _count_vocabulary(decoder))))


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of everything but the KV cache, and of one KV block."""

    tower: int
    projector: int
    decoder: int
    picture_workspace: int
    tower_workspace: int
    decoder_workspace: int
    graphs: int
    image_cache: int
    kv_block: int
    num_tile_rows: int

    @property
    def weights(self) -> int:
        """All parts of the model."""
        return self.tower + self.projector + self.decoder

    @property
    def workspace(self) -> int:
        """The tower runs before the decoder, so the larger one counts; what pictures are cut in stands beside both.

        NOTE: torch keeps the pieces that pictures were cut in, and a step fits few of its own into them (believed).
        While the plan counted on that, 100.1 % of it were reserved (H200, 2026-11-28).
        """
        return self.picture_workspace + max(self.tower_workspace, self.decoder_workspace)

    def count_blocks(self, config: ResolvedConfig, free_bytes: int) -> int:
        """KV blocks that fit in `free_bytes`, what is free once the weights are loaded."""
        if config.kv_cache_bytes is not None:
            return config.kv_cache_bytes // self.kv_block
        left = free_bytes - self.workspace - self.graphs - self.image_cache
        return min(MAX_BLOCKS, max(0, int(left * config.cache_share)) // self.kv_block)


def plan_memory(config: ResolvedConfig) -> MemoryPlan:
    """Plan one rank."""
    model = config.model
    item = DTYPE_BYTES[config.dtype]
    vision, decoder = model.vision, model.decoder
    tile_tokens = config.max_step_tiles * (1 + vision.num_patches)
    tower_token = item * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    heads = (decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim
    decoder_token = item * (4 * decoder.hidden_size + 3 * decoder.intermediate_size + 2 * heads)
    context_token = 0
    if config.device.type == "cpu":  # where plain operations run, and contexts are gathered
        tower_token += _FP32_TEMPORARIES * vision.hidden_size
        decoder_token += _FP32_TEMPORARIES * _count_normed(decoder)
        context_token = 4 * item * decoder.num_heads * decoder.head_dim
    sampler = config.max_batch_size * decoder.num_logits * _SAMPLER_BYTES
    logits_row = 4 * decoder.num_logits + item * decoder.vocab_size
    graphs = 0
    if config.graphs is not None:  # they share the largest one's memory, and one place for logits
        step = config.graphs.mixed[-1] * decoder_token + config.max_batch_size * logits_row
        tower = config.graphs.tiles[-1] * (1 + vision.num_patches) * tower_token
        num_layers = config.graphs.number * max(decoder.num_layers, vision.num_layers)
        launches = num_layers * _GRAPH_BYTES // _GRAPH_LAYERS
        graphs = launches + max(step, tower) + config.max_batch_size * 4 * decoder.num_logits
        if config.max_step_tiles == config.graphs.tiles[-1]:
            tile_tokens = 0  # none are encoded outside of a graph
    tile_bytes = model.tokens_per_tile * decoder.hidden_size * item
    num_tile_rows = max(config.max_step_tiles, config.image_cache_bytes // tile_bytes)
    counts = count_weights(model)
    return MemoryPlan(
        tower=counts.tower * item,
        projector=counts.projector * item,
        decoder=counts.decoder * item,
        picture_workspace=_RESAMPLE_BYTES,
        tower_workspace=tile_tokens * tower_token,
        decoder_workspace=config.max_step_tokens * decoder_token + config.session_len * context_token + sampler,
        graphs=graphs,
        image_cache=num_tile_rows * tile_bytes,
        kv_block=config.kv_bytes_per_token * config.block_size,
        num_tile_rows=num_tile_rows,
    )


@dataclass(frozen=True, slots=True)
class Fit:
    """How a model sits on a device; `changes` are the settings that made it fit, if any had to be changed.

    `num_blocks` is 0 where nothing fits; then `missing_bytes` says by how much the smallest setting fails.
    """

    config: ResolvedConfig
    memory: MemoryPlan
    num_blocks: int
    missing_bytes: int
    changes: Mapping[str, int]

    @property
    def capacity(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_blocks * self.config.block_size

    @property
    def total_bytes(self) -> int:
        """Everything that will be taken, the driver's own part included."""
        memory = self.memory
        kv_cache = self.num_blocks * memory.kv_block
        return CONTEXT_BYTES + memory.weights + memory.workspace + memory.graphs + memory.image_cache + kv_cache


# Settings that resolve to a field of another name.
_RENAMED = {"max_prefill_tiles": "max_step_tiles", "max_prefill_token_num": "max_step_tokens"}
# From what costs an answer nothing to what limits it; each row comes on top of the rows before it.
_SAVINGS: tuple[dict[str, int], ...] = (
    {"max_prefill_tiles": 4, "image_cache_bytes": 128 * MIB},
    {"max_prefill_token_num": 1024, "max_batch_size": 32},
    {"session_len": 8192},
    {"max_prefill_tiles": 1, "max_prefill_token_num": 512, "max_batch_size": 8, "image_cache_bytes": 0},
    {"session_len": SMALLEST_SESSION},
    {"use_cuda_graphs": False},
)


def fit_memory(config: EngineConfig, model: ModelConfig, device: DeviceConfig, device_bytes: int) -> Fit:
    """Find out how `model` runs in `device_bytes`, changing as few settings as it takes for one session to fit.

    A setting that differs from its default is the caller's and stays.

    Raises:
        ConfigError: the configuration contradicts the model.
    """
    defaults = EngineConfig()
    fit = _fit(config, {}, model, device, device_bytes)
    changes: dict[str, int] = {}
    for saving in _SAVINGS:
        if fit.num_blocks:
            break
        for name, value in saving.items():
            is_open = getattr(config, name) == getattr(defaults, name)
            if is_open and value < getattr(fit.config, _RENAMED.get(name, name)):
                changes[name] = value
        if "max_prefill_token_num" in changes:  # a step is never smaller than the batch
            batch = changes.get("max_batch_size", config.max_batch_size)
            changes["max_prefill_token_num"] = max(changes["max_prefill_token_num"], batch)
        fit = _fit(config, dict(changes), model, device, device_bytes)
    return fit


def _fit(
    config: EngineConfig, changes: dict[str, int], model: ModelConfig, device: DeviceConfig, device_bytes: int
) -> Fit:
    config = replace(config, **changes)  # pyright: ignore[reportArgumentType]
    resolved = resolve(config, model, device)
    memory = plan_memory(resolved)
    # As the engine does: a session length that nobody asked for shrinks to what the cache holds.
    session_len = resolved.session_len if config.session_len else min(resolved.session_len, SMALLEST_SESSION)
    session_blocks = -(-session_len // resolved.block_size)
    free_bytes = device_bytes - CONTEXT_BYTES - memory.weights
    num_blocks = memory.count_blocks(resolved, free_bytes)
    if config.kv_cache_bytes is not None and config.session_len is None:
        session_blocks = max(1, min(session_blocks, num_blocks))
    if config.kv_cache_bytes is not None and num_blocks < session_blocks:
        raise ConfigError(
            f"kv_cache_bytes={config.kv_cache_bytes} holds {num_blocks * resolved.block_size} tokens, fewer than a "
            f"session of {session_len}; raise it or leave it out.",
            param="kv_cache_bytes",
        )
    left = free_bytes - memory.workspace - memory.graphs - memory.image_cache
    if session_blocks <= num_blocks and num_blocks * memory.kv_block <= left:
        return Fit(resolved, memory, num_blocks, 0, changes)
    blocks = num_blocks if config.kv_cache_bytes else session_blocks / resolved.cache_share
    return Fit(resolved, memory, 0, int(blocks * memory.kv_block) - left, changes)
