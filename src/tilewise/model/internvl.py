"""InternVL composed: tower, projector, decoder, and the official name of every tensor as data."""

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tilewise.config import ResolvedConfig
from tilewise.layers.rope import Rope
from tilewise.layers.slot import Slot
from tilewise.model.decoder import Decoder
from tilewise.model.projector import Projector
from tilewise.model.vision import VisionTower
from tilewise.parallel import SINGLE, Group

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_VISION_ENDS = {
    "embeddings.class_embedding": ("embedding", "class_token"),
    "embeddings.patch_embedding.weight": ("embedding", "weight"),
    "embeddings.patch_embedding.bias": ("embedding", "bias"),
    "embeddings.position_embedding": ("embedding", "positions"),
}
_VISION_LAYER = {
    "attn.qkv.weight": ("attention.qkv", "weight"),
    "attn.qkv.bias": ("attention.qkv", "bias"),
    "attn.proj.weight": ("attention.output", "weight"),
    "attn.proj.bias": ("attention.output", "bias"),
    "attn.q_norm.weight": ("attention.q_norm", "weight"),
    "attn.k_norm.weight": ("attention.k_norm", "weight"),
    "mlp.fc1.weight": ("mlp.up", "weight"),
    "mlp.fc1.bias": ("mlp.up", "bias"),
    "mlp.fc2.weight": ("mlp.down", "weight"),
    "mlp.fc2.bias": ("mlp.down", "bias"),
    "norm1.weight": ("norm1", "weight"),
    "norm1.bias": ("norm1", "bias"),
    "norm2.weight": ("norm2", "weight"),
    "norm2.bias": ("norm2", "bias"),
    "ls1": ("", "scale1"),
    "ls2": ("", "scale2"),
}
_PROJECTOR = {
    "mlp1.0.weight": ("norm", "weight"),
    "mlp1.0.bias": ("norm", "bias"),
    "mlp1.1.weight": ("mlp.up", "weight"),
    "mlp1.1.bias": ("mlp.up", "bias"),
    "mlp1.3.weight": ("mlp.down", "weight"),
    "mlp1.3.bias": ("mlp.down", "bias"),
}


class InternVL(nn.Module):
    """Tower and projector turn tiles into embeddings; the decoder turns embeddings into logits."""

    def __init__(self, config: ResolvedConfig, group: Group = SINGLE) -> None:
        """Create uninitialised parameters on torch's current device."""
        super().__init__()
        model, dtype = config.model, DTYPES[config.dtype]
        self.config = model
        self.dtype = dtype
        self.tower = VisionTower(model.vision, model.select_layer, dtype)
        self.projector = Projector(model, dtype)
        rope = Rope(model.decoder.head_dim, config.session_len, config.rope_base, config.rope_position_scale)
        self.decoder = Decoder(model.decoder, rope, dtype, group)

    def encode_tiles(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) normalised pixels -> (N, tokens_per_tile, C)."""
        return self.projector(self.tower(pixels))

    def slots(self) -> dict[str, Slot]:
        """Return the place of every tensor that an official checkpoint of this configuration holds."""
        slots: dict[str, Slot] = {}
        for official, path, parameter, piece in self._names():
            module = self.get_submodule(path)
            slots[official] = module.slot(parameter, piece) if piece else module.slot(parameter)  # type: ignore[operator]
        return slots

    def is_unused(self, official: str) -> bool:
        """Tell whether a tensor belongs to a tower layer behind `select_layer`, which is not built."""
        prefix = "vision_model.encoder.layers."
        if not official.startswith(prefix):
            return False
        number = official[len(prefix) :].partition(".")[0]
        used, built = self.config.vision.num_layers, self.tower.num_used_layers
        return number.isdigit() and built <= int(number) < used

    def _names(self) -> Iterator[tuple[str, str, str, str | None]]:
        for official, (module, parameter) in _VISION_ENDS.items():
            yield f"vision_model.{official}", f"tower.{module}", parameter, None
        for number in range(self.tower.num_used_layers):
            for official, (module, parameter) in _VISION_LAYER.items():
                if self._has(official):
                    path = f"tower.layers.{number}.{module}".rstrip(".")
                    yield f"vision_model.encoder.layers.{number}.{official}", path, parameter, None
        for official, (module, parameter) in _PROJECTOR.items():
            yield official, f"projector.{module}", parameter, None
        for official, module, parameter, piece in self.decoder.names():
            yield f"language_model.{official}", f"decoder.{module}", parameter, piece

    def _has(self, official: str) -> bool:
        vision = self.config.vision
        if official in ("attn.q_norm.weight", "attn.k_norm.weight"):
            return vision.use_qk_norm
        if official == "attn.qkv.bias":
            return vision.use_qkv_bias
        return official not in ("norm1.bias", "norm2.bias") or vision.norm_type == "layer_norm"

    @torch.no_grad()
    def randomize(self, seed: int = 0) -> None:
        """Fill every parameter on its own device: matrices from N(0, 0.02^2), norms 1, layer scales 0.1, biases 0."""
        for name, parameter in self.named_parameters():
            generator = torch.Generator(parameter.device).manual_seed(seed + zlib.crc32(name.encode()))
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(0.1 if "scale" in name else 1.0)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
