"""InternVLChatConfig: the official layout of a checkpoint of the family.

Owns the official spelling of every field, and the defaults that the official configuration classes have where
a key is absent. Reads JSON and nothing else: `auto_map` and unknown keys are ignored, never executed. What the
model code could not honour is refused here by name, before any weight is touched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from tilewise.checkpoint.hf_config import internlm2
from tilewise.checkpoint.hf_config.intern_vision import read_vision
from tilewise.checkpoint.hf_config.not_yet import check_language_model
from tilewise.checkpoint.hf_config.section import Section, load_json
from tilewise.config import DTYPE_BYTES, DecoderConfig, ModelConfig, VisionConfig

_MAX_TILES = 64


@dataclass(frozen=True, slots=True)
class _LanguageModel:
    """The `model_type` that may stand for the class, and what reads its `llm_config`."""

    model_type: str
    read: Callable[[Section], DecoderConfig]


# Architectures and the `model_type` that may stand for each.
_CHAT_MODELS = {"InternVLChatModel": "internvl_chat"}
_LANGUAGE_MODELS = {"InternLM2ForCausalLM": _LanguageModel("internlm2", internlm2.read_decoder)}
# Architecture and language model of the checkpoints that can be served, as config.json names them.
SERVED = tuple((architecture, decoder) for architecture in _CHAT_MODELS for decoder in _LANGUAGE_MODELS)


def _read_dtype(*sections: Section) -> str:
    for section in sections:
        for key in ("torch_dtype", "dtype"):
            if section.get(key, None) is not None:
                return section.choice(key, "", tuple(DTYPE_BYTES))
    return "bfloat16"


def _read_downsample_ratio(top: Section, vision: VisionConfig) -> float:
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
    top = Section("config.json: ", load_json(folder / "config.json"))
    architecture = top.architecture(_CHAT_MODELS)
    vision_section, decoder_section = top.section("vision_config"), top.section("llm_config")
    vision = read_vision(vision_section)
    model_types = {name: language_model.model_type for name, language_model in _LANGUAGE_MODELS.items()}
    check_language_model(decoder_section, _LANGUAGE_MODELS)
    decoder = _LANGUAGE_MODELS[decoder_section.architecture(model_types)].read(decoder_section)
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
        system_message=top.word("system_message", None),
        is_random=top.flag("random_weights", False),
    )
