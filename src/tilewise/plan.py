"""What takes how much memory, computed from the configuration alone before anything is allocated.

Weights are exact. Workspaces are upper bounds of the activations that live at once in one step, from the shapes
at the step's budgets; the KV cache takes its share of what is left.
"""

from dataclasses import dataclass

from tilewise.config import DTYPE_BYTES, MIB, DecoderConfig, ModelConfig, ResolvedConfig, VisionConfig

_FP32_TEMPORARIES = 3 * 4  # bytes a channel that a norm holds in fp32 while it runs
_RESAMPLE_BYTES = 512 * MIB  # source pixels and int32 scratch of the largest accepted picture
_SAMPLER_BYTES = 6 * 4 + 8  # bytes a logit: fp32 copies, and the order of a sort


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
    attention = width * (q + 2 * kv) + q * width + (q + 2 * kv + width if config.use_bias else 0)
    layer = attention + 3 * width * config.intermediate_size + 2 * width
    ends = (1 if config.tie_word_embeddings else 2) * config.vocab_size * width + width
    return config.num_layers * layer + ends


def count_weights(model: ModelConfig) -> WeightCounts:
    """Count the parameters that are loaded: tower layers behind `select_layer` are not."""
    vision, out = model.vision, model.decoder.hidden_size
    wide = model.projector_input_size
    projector = 2 * wide + wide * out + out + out * out + out
    used_layers = model.select_layer % (vision.num_layers + 1)
    return WeightCounts(_count_tower(vision, used_layers), projector, _count_decoder(model.decoder))


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of everything but the KV cache, and of one KV block."""

    weights: int
    tower_workspace: int
    decoder_workspace: int
    image_cache: int
    kv_block: int
    num_tile_rows: int

    @property
    def workspace(self) -> int:
        """The tower runs before the decoder, so the larger one counts."""
        return max(self.tower_workspace, self.decoder_workspace)

    def count_blocks(self, config: ResolvedConfig, free_bytes: int) -> int:
        """KV blocks that fit in `free_bytes`, what is free once the weights are loaded."""
        if config.kv_cache_bytes is not None:
            return config.kv_cache_bytes // self.kv_block
        left = free_bytes - self.workspace - self.image_cache
        return max(0, int(left * config.cache_share)) // self.kv_block


def plan_memory(config: ResolvedConfig) -> MemoryPlan:
    """Plan one rank."""
    model = config.model
    item = DTYPE_BYTES[config.dtype]
    vision, decoder = model.vision, model.decoder
    tile_tokens = config.max_step_tiles * (1 + vision.num_patches)
    tower_token = item * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    tower_token += _FP32_TEMPORARIES * vision.hidden_size
    heads = (decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim
    decoder_token = item * (4 * decoder.hidden_size + 3 * decoder.intermediate_size + 2 * heads)
    decoder_token += _FP32_TEMPORARIES * decoder.hidden_size
    context_token = 4 * item * decoder.num_heads * decoder.head_dim  # keys and values, gathered and repeated
    sampler = config.max_batch_size * decoder.vocab_size * _SAMPLER_BYTES
    tile_bytes = model.tokens_per_tile * decoder.hidden_size * item
    num_tile_rows = max(config.max_step_tiles, config.image_cache_bytes // tile_bytes)
    return MemoryPlan(
        weights=count_weights(model).total * item,
        tower_workspace=tile_tokens * tower_token + _RESAMPLE_BYTES,
        decoder_workspace=config.max_step_tokens * decoder_token + config.session_len * context_token + sampler,
        image_cache=num_tile_rows * tile_bytes,
        kv_block=config.kv_bytes_per_token * config.block_size,
        num_tile_rows=num_tile_rows,
    )
