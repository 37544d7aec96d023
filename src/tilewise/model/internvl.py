"""InternVL composed: tower, projector, decoder, and the official name of every tensor as data."""

import re
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tilewise.config import ResolvedConfig
from tilewise.layers.rope import Rope
from tilewise.layers.slot import Layer, Slot, whole
from tilewise.model.decoder import Decoder
from tilewise.model.projector import Projector
from tilewise.model.vision import VisionLayer, VisionTower
from tilewise.parallel import SINGLE, Group

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_EMBEDDINGS, _LAYERS = "vision_model.embeddings", "vision_model.encoder.layers"
# Official name -> module, for modules whose tensors are called weight and bias.
_VISION_LAYER = {
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.output",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
    "norm1": "norm1",
    "norm2": "norm2",
}
_PROJECTOR = {"mlp1.0": "norm", "mlp1.1": "mlp.up", "mlp1.3": "mlp.down"}


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
        embedding = self.tower.embedding
        slots = {
            f"{_EMBEDDINGS}.class_embedding": whole(embedding.class_token),
            f"{_EMBEDDINGS}.position_embedding": whole(embedding.positions),
        }
        for number, layer in enumerate(self.tower.layers):
            assert isinstance(layer, VisionLayer)
            slots |= {f"{_LAYERS}.{number}.ls1": whole(layer.scale1), f"{_LAYERS}.{number}.ls2": whole(layer.scale2)}
        for official, path, piece in self._names():
            module = self.get_submodule(path)
            if isinstance(module, nn.Identity):  # a norm that this flavour lacks
                continue
            assert isinstance(module, Layer)
            slots |= {f"{official}.{name}": module.slot(name, piece) for name in ("weight", "bias") if module.has(name)}
        return slots

    def is_unused(self, official: str) -> bool:
        """Tell whether a tensor belongs to a tower layer behind `select_layer`, which is not built."""
        found = re.match(rf"{re.escape(_LAYERS)}\.([0-9]{{1,4}})\.", official)
        return found is not None and self.tower.num_used_layers <= int(found[1]) < self.config.vision.num_layers

    def _names(self) -> Iterator[tuple[str, str, str | None]]:
        yield f"{_EMBEDDINGS}.patch_embedding", "tower.embedding.projection", None
        for number in range(self.tower.num_used_layers):
            for official, module in _VISION_LAYER.items():
                yield f"{_LAYERS}.{number}.{official}", f"tower.layers.{number}.{module}", None
        for official, module in _PROJECTOR.items():
            yield official, f"projector.{module}", None
        for official, module, piece in self.decoder.names():
            yield f"language_model.{official}", f"decoder.{module}", piece

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
