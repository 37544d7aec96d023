"""InternVisionConfig: InternViT of 6B and of 300M."""

from typing import cast

from tilewise.checkpoint.hf_config.section import MAX_LAYERS, Section
from tilewise.config import NormType, VisionConfig


def read_vision(section: Section) -> VisionConfig:
    """Defaults are InternVisionConfig's, the 6B of 48 layers at 224 pixels."""
    section.choice("hidden_act", "gelu", ("gelu",))
    if section.count("num_channels", 3) != 3:
        raise section.unsupported("num_channels", "3")
    norm_eps = section.number("layer_norm_eps", 1e-6)
    vision = VisionConfig(
        hidden_size=section.count("hidden_size", 3200),
        num_layers=section.count("num_hidden_layers", 48, high=MAX_LAYERS),
        num_heads=section.count("num_attention_heads", 25),
        intermediate_size=section.count("intermediate_size", 12800),
        image_size=section.count("image_size", 224, high=4096),
        patch_size=section.count("patch_size", 14, high=4096),
        norm_type=cast(NormType, section.choice("norm_type", "rms_norm", ("rms_norm", "layer_norm"))),
        norm_eps=norm_eps,
        qk_norm_eps=norm_eps,
        use_qk_norm=section.flag("qk_normalization", True),
        use_qkv_bias=section.flag("qkv_bias", False),
    )
    check_divisions(section, vision)
    return vision


def check_divisions(section: Section, vision: VisionConfig) -> None:
    """Refuse heads that are no even share of the width, and patches that are none of the tile."""
    if vision.hidden_size % vision.num_heads:
        raise section.error("hidden_size", f"a multiple of num_attention_heads={vision.num_heads}")
    if vision.image_size % vision.patch_size:
        raise section.error("image_size", f"a multiple of patch_size={vision.patch_size}")
