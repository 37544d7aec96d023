"""Fields that both layouts spell alike at the top of config.json."""

from tilewise.checkpoint.hf_config.section import Section
from tilewise.config import DTYPE_BYTES, VisionConfig

MAX_TILES = 64


def read_dtype(*sections: Section) -> str:
    """Return the dtype that the first section says that says one."""
    for section in sections:
        for key in ("torch_dtype", "dtype"):
            if section.get(key, None) is not None:
                return section.choice(key, "", tuple(DTYPE_BYTES))
    return "bfloat16"


def read_downsample_ratio(top: Section, vision: VisionConfig) -> float:
    """Return the share of a tile's side that pixel shuffle leaves, which must cut its patches evenly."""
    ratio = top.number("downsample_ratio", 0.5)
    side = vision.image_size // vision.patch_size
    step = round(1 / ratio) if ratio >= 1 / side else 0
    if not step or step * ratio != 1.0 or side % step:
        raise top.error("downsample_ratio", f"1/n, with n a divisor of the {side} patches of a tile's side")
    return ratio
