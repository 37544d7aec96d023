"""The image processor of the Hugging Face layout: into how many tiles a picture is cut.

Its resampler is torchvision's, which differs from Pillow's in 0.5 % of the values, by at most 2. Ours stays Pillow's,
which the weights were trained with.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from tilewise.checkpoint.hf_config.section import Section
from tilewise.checkpoint.hf_config.shared_fields import MAX_TILES
from tilewise.checkpoint.json_file import load_json

# In processor_config.json (5.x) the image processor is a section; before, it had a file of its own.
_COMBINED_NAME, _OWN_NAME = "processor_config.json", "preprocessor_config.json"
# What our own pixels are made with; the first is Pillow's number of its bicubic filter.
_PIXELS = {
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
# Where the file leaves these out, the processor's class has CLIP's and 384 pixels.
_REQUIRED = ("image_mean", "image_std", "size")
_RESCALE_FACTOR = 1 / 255
_STEPS = ("do_resize", "do_rescale", "do_normalize")


@dataclass(frozen=True, slots=True)
class Tiling:
    """How many tiles a picture becomes, its thumbnail not counted."""

    min_tiles: int = 1
    max_tiles: int = 12


def _find_section(folder: Path) -> Section | None:
    if (folder / _COMBINED_NAME).exists():
        combined = Section(f"{_COMBINED_NAME}: ", load_json(folder / _COMBINED_NAME))
        if combined.get("image_processor", None) is not None:
            return combined.section("image_processor")
    if (folder / _OWN_NAME).exists():
        return Section(f"{_OWN_NAME}: ", load_json(folder / _OWN_NAME))
    return None


def read_tiling(folder: Path, image_size: int) -> Tiling:
    """Read the files of the processor, or take the family's values where there are none.

    QUIRK: `crop_to_patches` is false in published files, and the processor sets it to true; it is not read.

    Raises:
        CheckpointError: a file is malformed, or lacks what would then be another model's.
        UnsupportedModelError: pixels would be made in another way than ours.
    """
    section = _find_section(folder)
    if section is None:
        return Tiling()
    for key in _REQUIRED:
        section.get(key)
    for key, value in _PIXELS.items():
        section.only(key, value)
    if not math.isclose(section.number("rescale_factor", _RESCALE_FACTOR), _RESCALE_FACTOR, rel_tol=1e-6):
        raise section.unsupported("rescale_factor", "1/255")
    for key in _STEPS:
        section.only(key, True)
    section.only("size", {"height": image_size, "width": image_size})
    max_tiles = section.count("max_patches", Tiling().max_tiles, high=MAX_TILES)
    return Tiling(section.count("min_patches", 1, high=max_tiles), max_tiles)
