"""InternVLVisionConfig: the tower in the Hugging Face layout."""

from typing import Any, cast

from tilewise.checkpoint.hf_config.intern_vision import check_divisions
from tilewise.checkpoint.hf_config.section import MAX_LAYERS, Section
from tilewise.config import NormType, VisionConfig

# QUIRK: the class hands the norms of queries and keys no epsilon, so that they keep their own default.
_QK_NORM_EPS = 1e-6
_MAX_SIDE = 4096


def _read_side(section: Section, key: str, default: int) -> int:
    """A side of a square, given alone or as height and width."""

    def is_square(value: Any) -> bool:
        sides = _list_sides(value)
        return len(sides) == 2 and sides[0] == sides[1] and type(sides[0]) is int and 1 <= sides[0] <= _MAX_SIDE

    wanted = f"a whole number in [1, {_MAX_SIDE}], or twice the same in a list"
    return _list_sides(section.read(key, default, wanted, is_square))[0]


def _list_sides(value: Any) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else [value, value]


def read_vision(section: Section) -> VisionConfig:
    """Defaults are InternVLVisionConfig's, the 300M of 24 layers at 448 pixels."""
    section.only("hidden_act", "gelu")
    section.only("num_channels", 3)
    section.only("use_mask_token", False)
    section.only("use_absolute_position_embeddings", True)
    section.only("use_mean_pooling", True)  # without it there is a norm behind the last layer
    vision = VisionConfig(
        hidden_size=section.count("hidden_size", 1024),
        num_layers=section.count("num_hidden_layers", 24, high=MAX_LAYERS),
        num_heads=section.count("num_attention_heads", 16),
        intermediate_size=section.count("intermediate_size", 4096),
        image_size=_read_side(section, "image_size", 448),
        patch_size=_read_side(section, "patch_size", 14),
        norm_type=cast(NormType, section.choice("norm_type", "layer_norm", ("rms_norm", "layer_norm"))),
        norm_eps=section.number("layer_norm_eps", 1e-6),
        qk_norm_eps=_QK_NORM_EPS,
        use_qk_norm=section.flag("use_qk_norm", False),
        use_qkv_bias=section.flag("attention_bias", False),
    )
    check_divisions(section, vision)
    return vision
