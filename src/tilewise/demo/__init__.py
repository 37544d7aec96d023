"""The embedded model, in the official checkpoint layout, and a sample picture. `training/` makes both."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def model_folder() -> Path:
    """The model that is served where none is named."""
    return _FOLDER / "model"


def picture_path() -> Path:
    """A 600x400 PNG of coloured shapes: 7 tiles."""
    return _FOLDER / "picture.png"


def calibration_folder() -> Path:
    """64 scenes to quantise with: PNG files, and `scenes.jsonl` that lists them with questions and answers."""
    return _FOLDER / "calibration"
