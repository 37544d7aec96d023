"""InternVLConfig: the Hugging Face layout of a checkpoint, which transformers itself loads.

The same model under other names. Its config.json says nothing of tiles: those facts are the image processor's. It names
no template either, and has no field for one: which prompt belongs to it is decided by who chooses profiles.
"""

from dataclasses import replace
from pathlib import Path

from tilewise.checkpoint.hf_config.internvl_processor import read_tiling
from tilewise.checkpoint.hf_config.internvl_vision import read_vision
from tilewise.checkpoint.hf_config.language_models import read_language_model, tie_head
from tilewise.checkpoint.hf_config.not_yet import check_weights
from tilewise.checkpoint.hf_config.section import Section
from tilewise.checkpoint.hf_config.shared_fields import read_downsample_ratio, read_dtype
from tilewise.checkpoint.shards import list_tensor_names
from tilewise.config import ModelConfig

ARCHITECTURE = "InternVLForConditionalGeneration"
LANGUAGE_MODELS = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")


def read_model(top: Section, folder: Path) -> ModelConfig:
    """Read config.json, the image processor's file, and from the weights which of two sets of names they have.

    Source: InternVLConfig of transformers 4.52 to 5.24. QUIRK: it ties the head by default, and so do checkpoints that
    hold one of their own. Pixel shuffle is v2 there.
    """
    vision_section, decoder_section = top.section("vision_config"), top.section("text_config")
    vision = read_vision(vision_section)
    decoder = read_language_model(decoder_section, LANGUAGE_MODELS)
    check_weights(top, vision_section, decoder_section)
    top.only("projector_hidden_act", "gelu")
    top.only("vision_feature_select_strategy", "default")
    tiling = read_tiling(folder, vision.image_size)
    model = ModelConfig(
        architecture=ARCHITECTURE,
        layout="hf_flat",
        vision=vision,
        decoder=decoder,
        dtype=read_dtype(top, decoder_section),
        downsample_ratio=read_downsample_ratio(top, vision),
        pixel_shuffle_version="v2",
        select_layer=top.count("vision_feature_layer", -1, low=-vision.num_layers - 1, high=vision.num_layers),
        min_dynamic_patch=tiling.min_tiles,
        max_dynamic_patch=tiling.max_tiles,
        use_thumbnail=True,
        is_random=top.flag("random_weights", False),
    )
    if top.count("image_seq_length", 256) != model.tokens_per_tile:
        raise top.unsupported("image_seq_length", f"{model.tokens_per_tile}, the positions that a tile fills")
    is_tied = top.flag("tie_word_embeddings", True)
    tensor_names = list_tensor_names(folder)  # behind every refusal, which would say less of a file that is damaged
    is_nested = any(name.startswith("model.") for name in tensor_names)
    layout = "hf_nested" if is_nested else "hf_flat"
    return replace(model, layout=layout, decoder=tie_head(decoder, is_tied, tensor_names))
