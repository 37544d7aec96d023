"""The oracle: small random InternVLs of transformers, and the official checkpoints that hold the same weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLForConditionalGeneration

from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import EngineConfig, LayoutName
from tilewise.engine.core import EngineCore, build_core

TILE_SIZE = 56  # 4 x 4 patches of 14, so 4 positions a tile
VOCAB_SIZE = 300  # no multiple of the head's padding
IMAGE_ID = 296
MAX_POSITIONS = 256
# Large and unlike each other, so that a norm with another's epsilon shows.
VISION_EPS, DECODER_EPS = 1e-2, 3e-2

# What the 6B tower and the 300M one differ in: transformers' names, then the official ones.
FLAVOURS = {
    "6b": {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False},
    "300m": {"norm_type": "layer_norm", "use_qk_norm": False, "attention_bias": True},
}
_OFFICIAL_FLAGS = {"norm_type": "norm_type", "use_qk_norm": "qk_normalization", "attention_bias": "qkv_bias"}

_VISION_LAYER = {
    "attention.projection_layer": "attn.proj",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
_DECODER_LAYER = {
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def create_twin(
    flavour: str = "6b",
    *,
    rope_scaling: dict[str, Any] | None = None,
    select_layer: int = -1,
    has_decoder_bias: bool = False,
    width: int = 64,
    text: dict[str, Any] | None = None,
    is_official: bool = True,
    seed: int = 4,
) -> InternVLForConditionalGeneration:
    """Random weights, spread so that every branch counts and greedy answers vary; `width` is the decoder's.

    `text` changes fields of the language model, Llama's unless it says another `model_type`.
    """
    rope = {"rope_type": "default", "rope_theta": 10000.0, **(rope_scaling or {})}
    text = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": width * 3 // 2,
        "num_hidden_layers": 3,
        "num_attention_heads": 4 if width == 64 else width // 128,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": DECODER_EPS,
        "attention_bias": has_decoder_bias,
        "rope_parameters": rope,
        "tie_word_embeddings": False,
        **(text or {}),
    }
    vision = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 80,
        "image_size": TILE_SIZE,
        "patch_size": 14,
        "layer_norm_eps": VISION_EPS,
        **FLAVOURS[flavour],
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_ID,
        image_seq_length=4,
        vision_feature_layer=select_layer,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    twin = InternVLForConditionalGeneration._from_config(config, dtype=torch.float32).eval()
    _randomize(twin, (64 / width) ** 0.5, torch.Generator().manual_seed(seed))
    if vision["use_qk_norm"] and is_official:
        # The official code gives these norms the tower's epsilon; transformers leaves them at a default of 1e-6.
        for layer in twin.model.vision_tower.encoder.layer:
            layer.attention.q_norm.variance_epsilon = layer.attention.k_norm.variance_epsilon = VISION_EPS
    return twin


@torch.no_grad()
def _randomize(twin: nn.Module, decoder_share: float, generator: torch.Generator) -> None:
    for name, parameter in twin.named_parameters():
        share = decoder_share if "language_model" in name or "lm_head" in name else 1.0
        is_scale = "lambda" in name or ("norm" in name and name.endswith("weight"))
        parameter.normal_(0.0, 0.2 * share, generator=generator)
        if is_scale:
            parameter.add_(1.0)


def official_tensors(twin: InternVLForConditionalGeneration) -> dict[str, Tensor]:
    """The same weights under the official checkpoint's names and in its packing."""
    vision = twin.config.vision_config
    text = twin.config.text_config
    tower, projector = twin.model.vision_tower, twin.model.multi_modal_projector
    tensors = {
        "vision_model.embeddings.class_embedding": tower.embeddings.cls_token,
        "vision_model.embeddings.position_embedding": tower.embeddings.position_embeddings,
        **_named("vision_model.embeddings.patch_embedding", tower.embeddings.patch_embeddings.projection),
        **_named("mlp1.0", projector.layer_norm),
        **_named("mlp1.1", projector.linear_1),
        **_named("mlp1.3", projector.linear_2),
    }
    for number in range(vision.num_hidden_layers):
        layer, prefix = tower.encoder.layer[number], f"vision_model.encoder.layers.{number}"
        for theirs, official in _VISION_LAYER.items():
            tensors |= _named(f"{prefix}.{official}", layer.get_submodule(theirs))
        tensors |= {f"{prefix}.ls1": layer.lambda_1, f"{prefix}.ls2": layer.lambda_2}
        attention = layer.attention
        for kind in ("weight", "bias") if vision.attention_bias else ("weight",):
            parts = [getattr(part, kind) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
            tensors[f"{prefix}.attn.qkv.{kind}"] = torch.cat(parts)
    tensors |= _internlm2_tensors(twin) if text.model_type == "llama" else _qwen_tensors(twin)
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _qwen_tensors(twin: InternVLForConditionalGeneration) -> dict[str, Tensor]:
    head = {} if twin.config.text_config.tie_word_embeddings else _named("language_model.lm_head", twin.lm_head)
    return {**_named("language_model.model", twin.model.language_model), **head}


def _internlm2_tensors(twin: InternVLForConditionalGeneration) -> dict[str, Tensor]:
    text, decoder = twin.config.text_config, twin.model.language_model
    tensors = {
        **_named("language_model.model.tok_embeddings", decoder.embed_tokens),
        **_named("language_model.model.norm", decoder.norm),
        **_named("language_model.output", twin.lm_head),
    }
    for number in range(text.num_hidden_layers):
        layer, prefix = decoder.layers[number], f"language_model.model.layers.{number}"
        for theirs, official in _DECODER_LAYER.items():
            tensors |= _named(f"{prefix}.{official}", layer.get_submodule(theirs))
        attention = layer.self_attn
        for kind in ("weight", "bias") if text.attention_bias else ("weight",):
            qkv = [getattr(part, kind) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
            tensors[f"{prefix}.attention.wqkv.{kind}"] = pack_groups(*qkv, num_groups=text.num_key_value_heads)
    return tensors


def _named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}


def pack_groups(q: Tensor, k: Tensor, v: Tensor, *, num_groups: int) -> Tensor:
    """InternLM2's `wqkv`: of each KV head in turn its query heads, its key and its value."""
    parts = zip(q.chunk(num_groups), k.chunk(num_groups), v.chunk(num_groups), strict=True)
    return torch.cat([torch.cat(part) for part in parts])


def official_config(twin: InternVLForConditionalGeneration, *, pixel_shuffle: str = "v2") -> dict[str, Any]:
    vision, text = twin.config.vision_config, twin.config.text_config
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "torch_dtype": "float32",
        "downsample_ratio": 0.5,
        "ps_version": pixel_shuffle,
        "select_layer": twin.config.vision_feature_layer,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "vision_config": {
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "intermediate_size": vision.intermediate_size,
            "image_size": TILE_SIZE,
            "patch_size": 14,
            "layer_norm_eps": vision.layer_norm_eps,
            **{official: getattr(vision, theirs) for theirs, official in _OFFICIAL_FLAGS.items()},
        },
        "llm_config": _llm_config(text),
    }


def _llm_config(text: Any) -> dict[str, Any]:
    """As the files of transformers 4 have it: `rope_theta` and `rope_scaling`."""
    rope = text.rope_parameters
    scaling = None if rope["rope_type"] == "default" else {"type": rope["rope_type"], "factor": rope["factor"]}
    rope_fields = {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    if text.model_type != "llama":
        fields = {key: value for key, value in text.to_dict().items() if key not in ("model_type", "rope_parameters")}
        return {**fields, **rope_fields, "architectures": [f"{text.model_type.capitalize()}ForCausalLM"]}
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "bias": text.attention_bias,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
        "rms_norm_eps": text.rms_norm_eps,
        **rope_fields,
    }


def write_checkpoint(
    twin: InternVLForConditionalGeneration, folder: Path, layout: LayoutName, *, pixel_shuffle: str = "v2"
) -> None:
    """Write the twin as OpenGVLab does, as its own `save_pretrained` does, or under the names of its modules."""
    if layout == "official":
        save_file(official_tensors(twin), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(official_config(twin, pixel_shuffle=pixel_shuffle)))
        return
    twin.save_pretrained(folder)
    if layout == "hf_nested":
        save_file(dict(twin.named_parameters()), folder / "model.safetensors")


def load_engine(folder: Path, **options: Any) -> EngineCore:
    """Load a checkpoint the way every one is loaded."""
    settings = {"max_batch_size": 4, "kv_cache_bytes": 4 << 20, "image_cache_bytes": 1 << 20, "device": "cpu"}
    core, _ = build_core(folder, load_model_config(folder), EngineConfig(**{**settings, **options}))
    return core


def build_engine(
    twin: InternVLForConditionalGeneration,
    folder: Path,
    *,
    pixel_shuffle: str = "v2",
    layout: LayoutName = "official",
    **options: Any,
) -> EngineCore:
    """Write the twin as a checkpoint and load it."""
    write_checkpoint(twin, folder, layout, pixel_shuffle=pixel_shuffle)
    return load_engine(folder, **options)
