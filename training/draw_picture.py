"""Draw the sample picture: `python training/draw_picture.py`. A house, trees, a sun, a lake with a boat, a kite."""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from tilewise import demo

SIZE = (600, 400)
SCALE = 4  # drawn larger and scaled down, for smooth edges

SKY, GRASS, LAKE, SUN = "#bfe3f5", "#8cc66b", "#4f9fd1", "#f7c948"
HILL, WALL, ROOF, DOOR, WINDOW = "#6fae5b", "#f2e3c6", "#d1495b", "#8a5a3b", "#7cc0e8"
TRUNK, LEAVES, SAIL, HULL, KITE, FLOWER = "#7b5236", "#3f8f4f", "#ffffff", "#a63d40", "#8e5bb5", "#ff8fab"


def draw() -> Image.Image:
    """The scene, 600x400 RGB."""
    image = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), SKY)
    pen = ImageDraw.Draw(image)

    def scaled(*numbers: float) -> list[float]:
        return [number * SCALE for number in numbers]

    pen.ellipse(scaled(470, 30, 550, 110), fill=SUN)
    for left, top in ((60, 50), (95, 35), (130, 52)):
        pen.ellipse(scaled(left, top, left + 70, top + 36), fill="#ffffff")
    pen.ellipse(scaled(-80, 180, 320, 480), fill=HILL)
    pen.ellipse(scaled(230, 200, 720, 520), fill=HILL)
    pen.rectangle(scaled(0, 270, 600, 400), fill=GRASS)
    pen.ellipse(scaled(330, 285, 590, 375), fill=LAKE)
    pen.polygon(scaled(425, 325, 495, 325, 480, 345, 440, 345), fill=HULL)
    pen.polygon(scaled(460, 262, 460, 320, 428, 320), fill=SAIL)
    pen.polygon(scaled(464, 272, 464, 320, 490, 320), fill="#f4d58d")
    pen.rectangle(scaled(90, 215, 210, 310), fill=WALL)
    pen.polygon(scaled(75, 215, 150, 155, 225, 215), fill=ROOF)
    pen.rectangle(scaled(138, 255, 164, 310), fill=DOOR)
    for left in (102, 174):
        pen.rectangle(scaled(left, 235, left + 24, 259), fill=WINDOW, outline="#ffffff", width=2 * SCALE)
    for left, top in ((245, 190), (28, 200)):
        pen.rectangle(scaled(left + 20, top + 60, left + 32, top + 125), fill=TRUNK)
        pen.ellipse(scaled(left - 8, top, left + 60, top + 78), fill=LEAVES)
    pen.polygon(scaled(335, 60, 365, 90, 335, 135, 305, 90), fill=KITE)
    pen.line(scaled(335, 135, 325, 175, 340, 215), fill="#555555", width=SCALE)
    for x, y in ((40, 360), (85, 345), (125, 372), (190, 350), (240, 368), (290, 345)):
        pen.ellipse(scaled(x - 6, y - 6, x + 6, y + 6), fill=FLOWER)
        pen.ellipse(scaled(x - 2, y - 2, x + 2, y + 2), fill=SUN)
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def main() -> None:
    """Write picture.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=demo.picture_path(), help="file to write")
    draw().save(parser.parse_args().out, optimize=True)


if __name__ == "__main__":
    main()
