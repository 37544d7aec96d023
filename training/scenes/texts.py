"""Printed text: codes of letters and digits, words, Chinese characters; large, or too small for the thumbnail."""

from collections.abc import Mapping
from dataclasses import dataclass

from training.scenes.letters import CHINESE_FONTS, CODE, COMMON, LATIN_FONTS, WORDS, load_font
from training.scenes.sample import TILE, Canvas, Chance, Picture, Turn, distance, fill, paint_background, vary
from training.scenes.shapes import draw_shape
from training.scenes.words import BACKGROUNDS, COLOURS, ORDINALS, PLACES, WORDINGS, join

_MIN_CONTRAST = 150.0
_LATIN_SIZES, _CHINESE_SIZES = (13, 56), (18, 64)  # font sizes in pixels of the thumbnail
_SMALL_SIZES = {"latin": (14, 20), "chinese": (16, 22)}  # in pixels of a full-size tile


@dataclass(frozen=True, slots=True)
class Line:
    """Printed characters; `task` is `latin` or `chinese`."""

    text: str
    task: str
    colour: int
    box: tuple[float, float, float, float]


def choose_text(task: str, chance: Chance) -> str:
    """5 to 8 letters and digits, an English word, or 2 to 4 Chinese characters."""
    if task == "chinese":
        return "".join(chance.pick(COMMON) for _ in range(chance.between(2, 4)))
    if chance.is_true(0.2):
        word = chance.pick(WORDS)
        return chance.pick((word, word.upper(), word.capitalize()))
    return "".join(chance.pick(CODE) for _ in range(chance.between(5, 8)))


class TextScene:
    """Up to six lines, from top to bottom; with `is_small`, one to four of them somewhere among shapes."""

    tasks: Mapping[str, float]

    def __init__(self, canvas: Canvas, chance: Chance, *, is_small: bool = False, only: str | None = None) -> None:
        """Draw it; `only` leaves one kind of text."""
        self.canvas, self.is_small = canvas, is_small
        image, pen, self.background = paint_background(canvas, chance)
        ground = BACKGROUNDS[self.background][0]
        colours = [i for i, (rgb, *_) in enumerate(COLOURS) if distance(rgb, ground) > _MIN_CONTRAST]
        number = chance.between(1, 4) if is_small else chance.weighted({1: 2.5, 2: 2, 3: 2, 4: 2, 5: 1.5, 6: 1.5})
        tasks = [only or ("latin" if chance.is_true(0.5) else "chinese") for _ in range(number)]
        self.lines: list[Line] = []
        if is_small:
            self._draw_clutter(pen, chance, colours)
            spots = chance.draw(range(canvas.grid[0] * canvas.grid[1]), number)
            where = [self._tile(spot) for spot in spots]
        else:
            edges = [(row * canvas.height / number, (row + 1) * canvas.height / number) for row in range(number)]
            where = [(0.0, top, float(canvas.width), bottom) for top, bottom in edges]
        for task, area, colour in zip(tasks, where, chance.draw(colours, number), strict=False):
            text, rgb = choose_text(task, chance), vary(COLOURS[colour][0], chance, 10)
            font, corners = self._fit(text, task, area, chance)
            if is_small:  # nothing of the clutter behind it
                margin = 0.3 * font.size
                panel = (corners[0] - margin, corners[1] - margin, corners[2] + margin, corners[3] + margin)
                pen.rectangle(panel, fill=image.getpixel((0, 0)))
            left, top = font.getbbox(text)[:2]
            pen.text((corners[0] - left, corners[1] - top), text, fill=rgb, font=font)
            self.lines.append(Line(text, task, colour, corners))
        self.lines.sort(key=lambda line: line.box[1])
        self.pictures = (Picture(image, canvas.max_tiles),)
        self.tasks = (
            {"small": 3.0}
            if is_small
            else {"latin": 2.0, "chinese": 2.0, "lines": 2.0, "text box": 0.4, "describe": 0.4}
        )

    def _tile(self, number: int) -> tuple[float, float, float, float]:
        """A tile's area: a line that a cut goes through is not asked for."""
        columns, rows = self.canvas.grid
        wide, high = self.canvas.width / columns, self.canvas.height / rows
        left, top = number % columns * wide, number // columns * high
        return left, top, left + wide, top + high

    def _draw_clutter(self, pen, chance: Chance, colours: list[int]) -> None:
        for _ in range(chance.between(2, 6)):
            r = min(self.canvas.width, self.canvas.height) * chance.uniform(0.04, 0.1)
            x, y = chance.uniform(r, self.canvas.width - r), chance.uniform(r, self.canvas.height - r)
            rgb = COLOURS[chance.pick(colours)][0]
            draw_shape(pen, chance.between(0, 7), (x - r, y - r, x + r, y + r), rgb)

    def _fit(self, text: str, task: str, area: tuple[float, float, float, float], chance: Chance):
        """A font that the area has room for, and where the characters lie."""
        name = chance.pick(LATIN_FONTS if task == "latin" else CHINESE_FONTS)
        if self.is_small:
            low, high = _SMALL_SIZES[task]
            scale = max(self.canvas.width / self.canvas.grid[0], self.canvas.height / self.canvas.grid[1]) / TILE
        else:
            low, high = _LATIN_SIZES if task == "latin" else _CHINESE_SIZES
            scale = self.canvas.unit
        size = scale * low * (high / low) ** chance.random()
        wide, high = area[2] - area[0], area[3] - area[1]
        while True:
            font = load_font(name, max(8, round(size)))
            box = font.getbbox(text)
            width, height = box[2] - box[0], box[3] - box[1]
            if width < 0.92 * wide and height < 0.85 * high:
                break
            size *= 0.85
        left = area[0] + chance.uniform(0.04, 0.96) * (wide - width)
        top = area[1] + chance.uniform(0.07, 0.93) * (high - height)
        left, top = round(left), round(top)
        return font, (left, top, left + width, top + height)

    def ask(self, task: str, language: str, chance: Chance) -> Turn | None:
        """See `Scene.ask`."""
        facts = self._facts(task, language, chance)
        if facts is None:
            return None
        kind, fields = facts
        return Turn(task, language, *fill(chance.pick(WORDINGS[language][kind]), fields))

    def _facts(self, task: str, language: str, chance: Chance) -> tuple[str, dict[str, object]] | None:
        if task == "lines":
            return "lines", {"text": "\n".join(line.text for line in self.lines)}
        if task == "describe":
            return "describe", {"content": self._list(language)}
        matching = [line for line in self.lines if task in ("small", "text box", line.task)]
        if not matching:
            return None
        line = chance.pick(matching)
        number = self.lines.index(line)
        fields: dict[str, object] = {
            "text": line.text,
            "colour": COLOURS[line.colour][1 + (language == "zh")],
            "number": number + 1,
            "ordinal": ORDINALS[language][number],
        }
        if task == "text box":
            return "box", {"thing": line.text, "box": self.canvas.box(line.box)}
        base = "small" if self.is_small else "text"
        if len(self.lines) == 1 and chance.is_true(0.7):
            return base, fields
        by_place = not self.is_small and chance.is_true(0.5)
        return f"{base} by {'place' if by_place else 'colour'}", fields

    def _list(self, language: str) -> str:
        parts = []
        for line in self.lines:
            row = int(3 * (line.box[1] + line.box[3]) / 2 / self.canvas.height)
            colour, at = COLOURS[line.colour], PLACES[(1, 4, 7)[min(row, 2)]]
            english = f'the text "{line.text}" in {colour[1]} {at[0]}'
            parts.append(english if language == "en" else f"{at[1]}{colour[2]}的文字“{line.text}”")
        return join(language, parts) + ("." if language == "en" else "。")
