"""InternVLChatConfig: the official layout of a checkpoint of the family.

Owns the official spelling of every field, and the defaults that the official configuration classes have where
a key is absent. Reads JSON and names of tensors: `auto_map` and unknown keys are ignored, never executed. What the
model code could not honour is refused here by name, before any weight is touched.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from tilewise.checkpoint.hf_config.intern_vision import read_vision
from tilewise.checkpoint.hf_config.language_models import read_language_model, tie_head
from tilewise.checkpoint.hf_config.not_yet import check_weights
from tilewise.checkpoint.hf_config.section import Section
from tilewise.checkpoint.hf_config.shared_fields import MAX_TILES, read_downsample_ratio, read_dtype
from tilewise.checkpoint.shards import list_tensor_names
from tilewise.config import ModelConfig

ARCHITECTURE = "InternVLChatModel"


def read_model(top: Section, folder: Path) -> ModelConfig:
    """Read config.json; `folder` is asked whether the weights hold a head where `llm_config` says that it is tied.

    Source: InternVLChatConfig and InternVisionConfig of the published checkpoints. QUIRK: their default for
    an absent `dynamic_image_size` is false, which is one tile a picture.
    """
    vision_section, decoder_section = top.section("vision_config"), top.section("llm_config")
    vision = read_vision(vision_section)
    decoder = read_language_model(decoder_section)
    check_weights(top, vision_section, decoder_section)
    if top.count("force_image_size", vision.image_size) != vision.image_size:
        raise top.unsupported("force_image_size", f"vision_config.image_size={vision.image_size}")
    if top.flag("pad2square", False):
        raise top.unsupported("pad2square", "false")
    select_layer = top.count("select_layer", -1, low=-vision.num_layers - 1, high=vision.num_layers)
    max_tiles = top.count("max_dynamic_patch", 6, high=MAX_TILES)
    min_tiles = top.count("min_dynamic_patch", 1, high=max_tiles)
    is_dynamic = top.flag("dynamic_image_size", False)
    model = ModelConfig(
        architecture=ARCHITECTURE,
        layout="official",
        vision=vision,
        decoder=decoder,
        dtype=read_dtype(top, decoder_section),
        downsample_ratio=read_downsample_ratio(top, vision),
        pixel_shuffle_version=cast(Literal["v1", "v2"], top.choice("ps_version", "v1", ("v1", "v2"))),
        select_layer=select_layer,
        min_dynamic_patch=min_tiles if is_dynamic else 1,
        max_dynamic_patch=max_tiles if is_dynamic else 1,
        use_thumbnail=top.flag("use_thumbnail", False),
        template=top.word("template", None),
        system_message=top.word("system_message", None),
        is_random=top.flag("random_weights", False),
    )
    # QUIRK: the official class unties the head whatever this says, and checkpoints with a head of their own say true.
    if decoder_section.flag("tie_word_embeddings", False):
        model = replace(model, decoder=tie_head(decoder, True, list_tensor_names(folder)))
    return model
