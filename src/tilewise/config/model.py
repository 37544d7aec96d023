"""The facts of a checkpoint, whatever dialect its config.json spoke."""

from dataclasses import dataclass
from typing import Literal

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


NormType = Literal["rms_norm", "layer_norm"]
# How a checkpoint names its tensors: as OpenGVLab does, or as transformers does, its parts at the top or below `model`.
LayoutName = Literal["official", "hf_flat", "hf_nested"]


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
    qk_norm_eps: float = 1e-6
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
    """A decoder-only language model; `family` names its entry in `model.families.FAMILIES`.

    `use_output_bias` is the attention's output projection; `use_qk_norm` an RMSNorm over each head of the queries and
    keys, before they are rotated. With `is_head_tied` the head's rows are the embedding's.
    `num_tokens` is how many of the vocabulary's rows the tokenizer has, where they are known to be fewer: Qwen's heads
    have rows beyond it. Those are never sampled.
    `sliding_window` is how many positions some layers see, None where all see everything: no session is longer.
    """

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
    use_qkv_bias: bool = False
    use_output_bias: bool = False
    use_qk_norm: bool = False
    is_head_tied: bool = False
    num_tokens: int | None = None
    sliding_window: int | None = None

    @property
    def num_logits(self) -> int:
        """Logits of a position: one for each token that may be sampled."""
        return self.vocab_size if self.num_tokens is None else self.num_tokens

    @property
    def layer_matrix_size(self) -> int:
        """Elements of a layer's matrices: what one token multiplies with in it, attention itself apart."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.hidden_size * (q + 2 * kv + q + 3 * self.intermediate_size)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One servable checkpoint.

    `architecture` is config.json's name of the model's class, `layout` names its row in `model.layouts.LAYOUTS`.
    `template` is what the official layout says of the prompt; the Hugging Face layout says nothing, which is None.
    `system_message`, unless None, takes the place of the sentence in it.
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
    system_message: str | None = None
    is_random: bool = False
    layout: LayoutName = "official"

    @property
    def tokens_per_tile(self) -> int:
        """Prompt positions that one tile fills after pixel shuffle."""
        return round(self.vision.num_patches * self.downsample_ratio**2)

    @property
    def projector_input_size(self) -> int:
        """Channels of one position after pixel shuffle."""
        return round(self.vision.hidden_size / self.downsample_ratio**2)
