"""InternVL composed: tower, projector, decoder, and the place of every tensor of a checkpoint, whatever its layout."""

import re
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tilewise.config import ResolvedConfig
from tilewise.layers.rope import Rope
from tilewise.layers.slot import Layer, Slot, whole
from tilewise.model.decoder import Decoder
from tilewise.model.layouts import LAYOUTS, Layout
from tilewise.model.projector import Projector
from tilewise.model.vision import VisionTower
from tilewise.parallel import SINGLE, Group

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
        """Return the place of every tensor that a checkpoint of this configuration holds, by the layout's names."""
        layout = self._layout
        embeddings = {f"{layout.tower}.{name}": place for name, place in layout.embeddings.items()}
        slots = {name: whole(self.tower.embedding.get_parameter(place)) for name, place in embeddings.items()}
        for number, layer in enumerate(self.tower.layers):
            scales = {f"{self._layers}.{number}.{name}": place for name, place in layout.scales.items()}
            slots |= {name: whole(layer.get_parameter(place)) for name, place in scales.items()}
        for stored, path, piece in self._names():
            module = self.get_submodule(path)
            if isinstance(module, nn.Identity):  # a norm that this flavour lacks
                continue
            assert isinstance(module, Layer)
            slots |= {f"{stored}.{name}": module.slot(name, piece) for name in ("weight", "bias") if module.has(name)}
        return slots

    def is_unused(self, stored: str) -> bool:
        """Tell whether a tensor belongs to a tower layer behind `select_layer`, which is not built, or can be computed.

        Older savers wrote the frequencies of rotary positions, too.
        """
        if stored.endswith(".rotary_emb.inv_freq"):
            return True
        found = re.match(rf"{re.escape(self._layers)}\.([0-9]{{1,4}})\.", stored)
        return found is not None and self.tower.num_used_layers <= int(found[1]) < self.config.vision.num_layers

    @property
    def _layout(self) -> Layout:
        return LAYOUTS[self.config.layout]

    @property
    def _layers(self) -> str:
        return f"{self._layout.tower}.{self._layout.layers}"

    def _names(self) -> Iterator[tuple[str, str, str | None]]:
        layout = self._layout
        yield f"{layout.tower}.{layout.patches}", "tower.embedding.projection", None
        for number in range(self.tower.num_used_layers):
            for stored, (module, piece) in layout.layer.items():
                yield f"{self._layers}.{number}.{stored}", f"tower.layers.{number}.{module}", piece
        for stored, module in layout.projector.items():
            yield stored, f"projector.{module}", None
        for name, module, piece in self.decoder.names():
            yield layout.name_decoder(name), f"decoder.{module}", piece

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
