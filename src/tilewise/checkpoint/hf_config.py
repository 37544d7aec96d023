"""Reads the official config.json into a `ModelConfig`.

Owns the official spelling of every field, and the defaults that the official configuration classes have where
a key is absent. Reads JSON and nothing else: `auto_map` and unknown keys are ignored, never executed. What the
model code could not honour is refused here by name, before any weight is touched.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from tilewise.config import DTYPE_BYTES, DecoderConfig, ModelConfig, NormType, RopeScaling, VisionConfig
from tilewise.errors import CheckpointError, UnsupportedModelError
from tilewise.files import read_model_file

# The official files are below 10 kB; an index of 100,000 tensors stays below 16 MiB.
_MAX_JSON_BYTES = 16 << 20
_MAX_WIDTH = 1 << 20
_MAX_VOCAB = 1 << 24
_MAX_LAYERS = 1024
_MAX_TILES = 64
_REQUIRED: Any = object()


# Architectures and the `model_type` that may stand for each; a language model's is its row in the decoder's table, too.
_FAMILIES = {"InternLM2ForCausalLM": "internlm2"}
_CHAT_MODELS = {"InternVLChatModel": "internvl_chat"}
# Architecture and language model of the checkpoints that can be served, as config.json names them.
SERVED = tuple((architecture, decoder) for architecture in _CHAT_MODELS for decoder in _FAMILIES)


def load_json(path: Path) -> dict[str, Any]:
    """Read one JSON object of bounded size.

    Raises:
        CheckpointError: the file is missing, too large, not JSON or not an object.
    """
    content = read_model_file(path, _MAX_JSON_BYTES)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not valid JSON ({error!s:.120}); download it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object, got a {type(data).__name__}.")
    return cast(dict[str, Any], data)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in cast(list[Any], value))


def _shown(value: Any) -> str:
    """A value in one short piece: names in a list are shown, other containers (which may be deep) only counted."""
    if _are_names(value):
        return f"{', '.join(value)!r:.80}"
    return f"a container of {len(value)}" if type(value) in (list, dict) else f"{value!r:.80}"


class _Section:
    """One JSON object whose fields are read by type; every refusal names file and field. null means absent."""

    def __init__(self, path: str, data: Mapping[str, Any]) -> None:
        self._path = path
        self._data = data

    def error(self, key: str, wanted: str) -> CheckpointError:
        """What to raise where the value of `key` is not `wanted`."""
        return CheckpointError(f"{self._path}{key} must be {wanted}, got {_shown(self._data.get(key))}.", param=key)

    def unsupported(self, key: str, supported: str) -> UnsupportedModelError:
        """What to raise where `key` is well-formed and Tilewise cannot honour it."""
        given = _shown(self._data.get(key))
        return UnsupportedModelError(f"{self._path}{key}={given} is not supported; only {supported}.", param=key)

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self._data.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise CheckpointError(f"{self._path}{key} is missing.", param=key)
        return default

    def read(self, key: str, default: Any, wanted: str, is_right: Callable[[Any], bool]) -> Any:
        value = self.get(key, default)
        if not is_right(value):
            raise self.error(key, wanted)
        return value

    def section(self, key: str) -> "_Section":
        data = self.read(key, _REQUIRED, "an object", lambda value: type(value) is dict)
        return _Section(f"{self._path}{key}.", data)

    def count(self, key: str, default: Any = _REQUIRED, *, low: int = 1, high: int = _MAX_WIDTH) -> int:
        wanted = f"a whole number in [{low}, {high}]"
        return self.read(key, default, wanted, lambda value: type(value) is int and low <= value <= high)

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        return float(self.read(key, default, "a positive number", lambda n: type(n) in (int, float) and 0 < n < 1e15))

    def flag(self, key: str, default: bool) -> bool:
        return self.read(key, default, "true or false", lambda value: isinstance(value, bool))

    def word(self, key: str, default: str | None) -> str | None:
        return self.read(key, default, "a string", lambda value: value is None or isinstance(value, str))

    def choice(self, key: str, default: str, supported: tuple[str, ...]) -> str:
        value = self.word(key, default)
        if value not in supported:
            raise self.unsupported(key, " or ".join(supported))
        return value

    def architecture(self, supported: Mapping[str, str]) -> str:
        """The first of `architectures`, or the one that `model_type` stands for (`supported` maps one to the other)."""
        names = self.read("architectures", [], "a list of names", _are_names)
        by_type = {model_type: name for name, model_type in supported.items()}
        name = names[0] if names else by_type.get(self.word("model_type", None) or "")
        if name is None or name not in supported:
            raise self.unsupported("architectures" if names else "model_type", ", ".join(supported))
        return name


def _read_vision(section: _Section) -> VisionConfig:
    """Defaults are InternVisionConfig's, the 6B of 48 layers at 224 pixels."""
    section.choice("hidden_act", "gelu", ("gelu",))
    if section.count("num_channels", 3) != 3:
        raise section.unsupported("num_channels", "3")
    vision = VisionConfig(
        hidden_size=section.count("hidden_size", 3200),
        num_layers=section.count("num_hidden_layers", 48, high=_MAX_LAYERS),
        num_heads=section.count("num_attention_heads", 25),
        intermediate_size=section.count("intermediate_size", 12800),
        image_size=section.count("image_size", 224, high=4096),
        patch_size=section.count("patch_size", 14, high=4096),
        norm_type=cast(NormType, section.choice("norm_type", "rms_norm", ("rms_norm", "layer_norm"))),
        norm_eps=section.number("layer_norm_eps", 1e-6),
        use_qk_norm=section.flag("qk_normalization", True),
        use_qkv_bias=section.flag("qkv_bias", False),
    )
    if vision.hidden_size % vision.num_heads:
        raise section.error("hidden_size", f"a multiple of num_attention_heads={vision.num_heads}")
    if vision.image_size % vision.patch_size:
        raise section.error("image_size", f"a multiple of patch_size={vision.patch_size}")
    return vision


def _read_rope_scaling(section: _Section) -> RopeScaling | None:
    if section.get("rope_scaling", None) is None:
        return None
    scaling = section.section("rope_scaling")
    key = "type" if scaling.get("type", None) is not None else "rope_type"
    if scaling.word(key, None) is None:
        raise section.error("rope_scaling", "an object with type and factor")
    kind = cast(Literal["linear", "dynamic"], scaling.choice(key, "", ("linear", "dynamic")))
    factor = scaling.number("factor")
    if factor < 1.0:
        raise scaling.error("factor", "at least 1")
    return RopeScaling(kind, factor)


def _read_decoder(section: _Section) -> DecoderConfig:
    """Defaults are InternLM2Config's of the published checkpoint; only the sizes have no usable default there."""
    family = _FAMILIES[section.architecture(_FAMILIES)]
    section.choice("hidden_act", "silu", ("silu",))
    hidden_size = section.count("hidden_size")
    num_heads = section.count("num_attention_heads")
    num_kv_heads = section.count("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise section.error("num_key_value_heads", f"a divisor of num_attention_heads={num_heads}")
    if hidden_size % (2 * num_heads):
        raise section.error("hidden_size", f"an even multiple of num_attention_heads={num_heads} (rotary halves)")
    if section.flag("tie_word_embeddings", False):
        raise section.error("tie_word_embeddings", "false")
    return DecoderConfig(
        family=family,
        hidden_size=hidden_size,
        intermediate_size=section.count("intermediate_size"),
        num_layers=section.count("num_hidden_layers", high=_MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=hidden_size // num_heads,
        vocab_size=section.count("vocab_size", high=_MAX_VOCAB),
        max_position_embeddings=section.count("max_position_embeddings", high=_MAX_VOCAB),
        norm_eps=section.number("rms_norm_eps", 1e-6),
        rope_theta=section.number("rope_theta", 10000.0),
        rope_scaling=_read_rope_scaling(section),
        use_bias=section.flag("bias", True),
    )


def _read_dtype(*sections: _Section) -> str:
    for section in sections:
        for key in ("torch_dtype", "dtype"):
            if section.get(key, None) is not None:
                return section.choice(key, "", tuple(DTYPE_BYTES))
    return "bfloat16"


def _read_downsample_ratio(top: _Section, vision: VisionConfig) -> float:
    ratio = top.number("downsample_ratio", 0.5)
    side = vision.image_size // vision.patch_size
    step = round(1 / ratio) if ratio >= 1 / side else 0
    if not step or step * ratio != 1.0 or side % step:
        raise top.error("downsample_ratio", f"1/n, with n a divisor of the {side} patches of a tile's side")
    return ratio


def load_model_config(folder: Path) -> ModelConfig:
    """Read `folder`/config.json.

    Raises:
        CheckpointError: the file is missing or malformed; the message names file and field.
        UnsupportedModelError: the model is of an architecture or flavour outside the family.

    Source: InternVLChatConfig and InternVisionConfig of the published checkpoints. QUIRK: their default for
    an absent `dynamic_image_size` is false, which is one tile a picture.
    """
    top = _Section("config.json: ", load_json(folder / "config.json"))
    architecture = top.architecture(_CHAT_MODELS)
    vision_section, decoder_section = top.section("vision_config"), top.section("llm_config")
    vision, decoder = _read_vision(vision_section), _read_decoder(decoder_section)
    if top.count("force_image_size", vision.image_size) != vision.image_size:
        raise top.unsupported("force_image_size", f"vision_config.image_size={vision.image_size}")
    if top.flag("pad2square", False):
        raise top.unsupported("pad2square", "false")
    select_layer = top.count("select_layer", -1, low=-vision.num_layers - 1, high=vision.num_layers)
    max_tiles = top.count("max_dynamic_patch", 6, high=_MAX_TILES)
    min_tiles = top.count("min_dynamic_patch", 1, high=max_tiles)
    is_dynamic = top.flag("dynamic_image_size", False)
    return ModelConfig(
        architecture=architecture,
        vision=vision,
        decoder=decoder,
        dtype=_read_dtype(top, decoder_section),
        downsample_ratio=_read_downsample_ratio(top, vision),
        pixel_shuffle_version=cast(Literal["v1", "v2"], top.choice("ps_version", "v1", ("v1", "v2"))),
        select_layer=select_layer,
        min_dynamic_patch=min_tiles if is_dynamic else 1,
        max_dynamic_patch=max_tiles if is_dynamic else 1,
        use_thumbnail=top.flag("use_thumbnail", False),
        template=top.word("template", None),
        is_random=top.flag("random_weights", False),
    )
