"""How checkpoints of each layout name the tensors of one and the same model. The language model's are in `families`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tilewise.config import LayoutName


@dataclass(frozen=True, slots=True)
class Layout:
    """Name in the checkpoint -> place in our module of that part: a parameter, or a module and which piece of it.

    `tower` is what the tower's names begin with, `layers` a layer's below it, before its number. Of a family's names
    those in `model` begin with `decoder` instead, and the others, which are the head's, get `head` before them.
    """

    tower: str
    embeddings: Mapping[str, str]
    patches: str
    layers: str
    scales: Mapping[str, str]
    layer: Mapping[str, tuple[str, str | None]]
    projector: Mapping[str, str]
    decoder: str
    head: str

    def name_decoder(self, name: str) -> str:
        """Return the name in the checkpoint of what a family calls `name`."""
        if name.startswith("model."):
            return f"{self.decoder}.{name.removeprefix('model.')}"
        return f"{self.head}{name}"


_OFFICIAL = Layout(
    tower="vision_model",
    embeddings={"embeddings.class_embedding": "class_token", "embeddings.position_embedding": "positions"},
    patches="embeddings.patch_embedding",
    layers="encoder.layers",
    scales={"ls1": "scale1", "ls2": "scale2"},
    layer={
        "attn.qkv": ("attention.qkv", None),
        "attn.proj": ("attention.output", None),
        "attn.q_norm": ("attention.q_norm", None),
        "attn.k_norm": ("attention.k_norm", None),
        "mlp.fc1": ("mlp.up", None),
        "mlp.fc2": ("mlp.down", None),
        "norm1": ("norm1", None),
        "norm2": ("norm2", None),
    },
    projector={"mlp1.0": "norm", "mlp1.1": "mlp.up", "mlp1.3": "mlp.down"},
    decoder="language_model.model",
    head="language_model.",
)
# What transformers 4.52 names them, and what 5.x still writes.
_HF_FLAT = Layout(
    tower="vision_tower",
    embeddings={"embeddings.cls_token": "class_token", "embeddings.position_embeddings": "positions"},
    patches="embeddings.patch_embeddings.projection",
    layers="encoder.layer",
    scales={"lambda_1": "scale1", "lambda_2": "scale2"},
    layer={
        "attention.q_proj": ("attention.qkv", "q"),
        "attention.k_proj": ("attention.qkv", "k"),
        "attention.v_proj": ("attention.qkv", "v"),
        "attention.projection_layer": ("attention.output", None),
        "attention.q_norm": ("attention.q_norm", None),
        "attention.k_norm": ("attention.k_norm", None),
        "mlp.fc1": ("mlp.up", None),
        "mlp.fc2": ("mlp.down", None),
        "layernorm_before": ("norm1", None),
        "layernorm_after": ("norm2", None),
    },
    projector={
        "multi_modal_projector.layer_norm": "norm",
        "multi_modal_projector.linear_1": "mlp.up",
        "multi_modal_projector.linear_2": "mlp.down",
    },
    decoder="language_model.model",
    head="language_model.",
)
# The names of transformers' own modules from 4.53 on.
_HF_NESTED = replace(
    _HF_FLAT,
    tower=f"model.{_HF_FLAT.tower}",
    projector={f"model.{name}": module for name, module in _HF_FLAT.projector.items()},
    decoder="model.language_model",
    head="",
)
LAYOUTS: Mapping[LayoutName, Layout] = {"official": _OFFICIAL, "hf_flat": _HF_FLAT, "hf_nested": _HF_NESTED}
