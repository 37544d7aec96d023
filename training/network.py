"""The demo model's configuration, and its forward pass over whole sequences, for training.

The parameters are those of the package's own modules; here they run without a paged cache, as plain functions of
tensors, so that torch.compile takes one for all layers. A test holds the logits to the engine's.
"""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DeviceConfig, EngineConfig, ModelConfig, resolve
from tilewise.inputs.text.profiles import PROFILES
from tilewise.kernels import apply_rope, rms_norm, silu_and_multiply
from tilewise.model.internvl import InternVL

VISION = {
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "hidden_act": "gelu",
    "hidden_size": 384,
    "image_size": 448,
    "intermediate_size": 896,
    "layer_norm_eps": 1e-6,
    "norm_type": "rms_norm",
    "num_attention_heads": 6,
    "num_channels": 3,
    "num_hidden_layers": 6,
    "patch_size": 14,
    "qk_normalization": True,
    "qkv_bias": False,
    "torch_dtype": "bfloat16",
}
LANGUAGE = {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 768,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_TABLE_STD, _BRANCH_END = 0.5, 0.3


def describe(vocab_size: int, **changes: dict) -> dict[str, object]:
    """The config.json; `changes` are keys of `vision_config` and `llm_config` to replace."""
    vision = {**VISION, **changes.get("vision_config", {})}
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": vision["image_size"],
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "system_message": PROFILES["internvl-internlm2"].meta_instruction,
        "template": "internlm2-chat",
        "torch_dtype": "bfloat16",
        "use_thumbnail": True,
        "llm_config": {**LANGUAGE, "vocab_size": vocab_size, **changes.get("llm_config", {})},
        "vision_config": vision,
    }


def write_config(folder: Path, description: dict[str, object]) -> ModelConfig:
    """Write config.json, and read it as the package does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    return load_model_config(folder)


def create_model(config: ModelConfig) -> InternVL:
    """The package's model in fp32 on torch's current device, nothing initialised, every parameter trainable."""
    device = DeviceConfig("cpu")
    model = InternVL(resolve(EngineConfig(device="cpu", dtype="float32"), config, device))
    return model.requires_grad_(True)


@torch.no_grad()
def initialize(model: InternVL, seed: int = 0) -> None:
    """Start as a network that passes its inputs on: norms and layer scales 1, biases 0, narrow ends of branches."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1.0)
        elif name == "tower.embedding.positions":
            parameter[0, 1:] = _grid_waves(model.config.vision.num_patches, parameter.shape[2])
            parameter[0, 0] = 0.0
        else:
            std = _TABLE_STD if parameter.dim() == 3 or "decoder.embedding" in name else parameter.shape[1] ** -0.5
            if "projector" not in name and name.endswith(("output.weight", "down.weight", "head.weight")):
                std *= _BRANCH_END
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def _grid_waves(num_patches: int, width: int) -> Tensor:
    """Sines and cosines of row and column, where the learned positions start from: (P, width)."""
    side = round(num_patches**0.5)
    frequencies = side ** -torch.linspace(0, 1, width // 4)
    angles = torch.outer(torch.arange(side), frequencies)  # (side, width / 4)
    waves = torch.cat((angles.sin(), angles.cos()), dim=1)  # (side, width / 2)
    grid = torch.cat((waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)), dim=2)
    return _TABLE_STD * grid.flatten(0, 1)


def tower_layer(x: Tensor, weights: tuple[Tensor, ...], num_heads: int, eps: float) -> Tensor:
    """`VisionLayer` with q/k norms: (N, P, C) -> (N, P, C)."""
    norm1, qkv, q_norm, k_norm, out, out_bias, scale1, norm2, up, up_bias, down, down_bias, scale2 = weights
    q, k, v = F.linear(rms_norm(x, norm1, eps), qkv).chunk(3, dim=-1)
    q, k, v = (
        part.unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for part in (rms_norm(q, q_norm, eps).to(v.dtype), rms_norm(k, k_norm, eps).to(v.dtype), v)
    )
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + F.linear(attended, out, out_bias) * scale1
    inner = F.gelu(F.linear(rms_norm(x, norm2, eps), up, up_bias))
    return x + F.linear(inner, down, down_bias) * scale2


def decoder_layer_start(x: Tensor, weights: tuple[Tensor, ...], angles: tuple[Tensor, Tensor], sizes: tuple) -> tuple:
    """Norm, projection and rope of `DecoderLayer`: (B, T, C) -> q, k, v, each (B, H, T, D)."""
    attention_norm, qkv = weights
    num_heads, num_kv_heads, head_dim, eps = sizes
    parts = F.linear(rms_norm(x, attention_norm, eps), qkv).unflatten(-1, (-1, head_dim)).flatten(0, 1)
    q, k, v = parts.split((num_heads, num_kv_heads, num_kv_heads), dim=1)  # (B * T, H, D)
    q, k = apply_rope(q, *angles), apply_rope(k, *angles)
    group = num_heads // num_kv_heads
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    q, k, v = (part.unflatten(0, x.shape[:2]).transpose(1, 2) for part in (q, k, v))
    return q, k, v


def decoder_layer_end(x: Tensor, attended: Tensor, weights: tuple[Tensor, ...], eps: float) -> Tensor:
    """The rest of `DecoderLayer` behind the attention (B, H, T, D): -> (B, T, C)."""
    out, mlp_norm, gate_up, down = weights
    x = x + F.linear(attended.transpose(1, 2).flatten(2), out)
    return x + F.linear(silu_and_multiply(F.linear(rms_norm(x, mlp_norm, eps), gate_up)), down)


class Network:
    """The dense forward pass of one model."""

    def __init__(self, model: InternVL, *, compiles: bool = False) -> None:
        """`compiles` runs the layers through torch.compile, once for all of them; the tower's see one shape only."""
        self.model = model
        self._tower_layer = torch.compile(tower_layer, dynamic=False) if compiles else tower_layer
        # The attention between them stays outside: its mask's alignment cannot be told from symbolic shapes.
        parts = (decoder_layer_start, decoder_layer_end)
        self._start, self._end = (torch.compile(p, dynamic=True) if compiles else p for p in parts)

    def encode_tiles(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, tokens_per_tile, C)."""
        tower = self.model.tower
        vision = self.model.config.vision
        x = tower.embedding(pixels).float()
        with _tower_attention():
            for layer in tower.layers:
                x = self._tower_layer(x, _tower_weights(layer), vision.num_heads, vision.norm_eps)
        return self.model.projector(x[:, 1:])

    def decode(self, x: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, C) embeddings at `positions` (B, T) -> (B, T, C), before the last norm; without a mask it is causal.

        A mask (B, 1, T, T) is true where a position is seen.
        """
        decoder = self.model.decoder
        config = decoder.config
        sizes = (config.num_heads, config.num_kv_heads, config.head_dim, config.norm_eps)
        angles = decoder.rope(positions.flatten())
        for layer in decoder.layers:
            start, end = _decoder_weights(layer)
            q, k, v = self._start(x, start, angles, sizes)
            if mask is not None and mask.dtype == torch.bool:  # once, not in every layer
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            x = self._end(x, attended, end, config.norm_eps)
        return x

    def embed(self, ids: Tensor, slots: Tensor, tiles: Tensor | None) -> Tensor:
        """Embeddings (B, T, C) with the tiles' in the places that the flat indices `slots` name."""
        x = self.model.decoder.embedding(ids)
        if tiles is None:
            return x
        filled = x.flatten(0, 1).index_copy(0, slots, tiles.flatten(0, 1)[: len(slots)].to(x.dtype))
        return filled.view(x.shape).clone()  # a view would have the decoder's first layer compiled apart: a minute


def _tower_attention() -> AbstractContextManager[None]:
    """On Hopper that of cuDNN: 1.30 ms a layer, forward and backward, against 2.14 (64 tiles, H200, 2026-11)."""
    version = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    # Before 9.15.1 it was wrong for lengths that 128 does not divide, such as a tile's 1025.
    if version is None or version < 91501 or torch.cuda.get_device_capability()[0] != 9:
        return nullcontext()
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(backends, set_priority=True)


def _tower_weights(layer: nn.Module) -> tuple[Tensor, ...]:
    a, m = layer.attention, layer.mlp
    attention = (layer.norm1.weight, a.qkv.weight, a.q_norm.weight, a.k_norm.weight, a.output.weight, a.output.bias)
    mlp = (layer.norm2.weight, m.up.weight, m.up.bias, m.down.weight, m.down.bias)
    return (*attention, layer.scale1, *mlp, layer.scale2)


def _decoder_weights(layer: nn.Module) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    start = (layer.attention_norm.weight, layer.attention.qkv.weight)
    return start, (
        layer.attention.output.weight,
        layer.mlp_norm.weight,
        layer.mlp.gate_up.weight,
        layer.mlp.down.weight,
    )
