"""Draw the sample picture, a scene of shapes: `python -m training.draw_picture`."""

import argparse
from pathlib import Path

from PIL import Image
from training.scenes.sample import Canvas, Chance
from training.scenes.shapes import ShapeScene

from tilewise import demo

NAME = "picture/9"
SIZE = (600, 400)


def draw(name: str = NAME) -> Image.Image:
    """The scene, 600x400 RGB, which is 7 tiles. No scene of training or evaluation has such a name."""
    return ShapeScene(Canvas(*SIZE), Chance(name)).pictures[0].image


def main() -> None:
    """Write picture.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=demo.picture_path(), help="file to write")
    draw().save(parser.parse_args().out, optimize=True)


if __name__ == "__main__":
    main()
