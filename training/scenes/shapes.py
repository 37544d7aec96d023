"""Coloured shapes on a plain ground: colour, shape, size, number, place, relation, boxes, full descriptions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi, sin

from PIL import ImageDraw
from training.scenes.sample import Canvas, Chance, Picture, Turn, distance, fill, paint_background, vary
from training.scenes.words import BACKGROUNDS, COLOURS, ORDINALS, PLACES, SHAPES, SIDES, WORDINGS, join, yes

TASKS = {
    "colour": 1.0,
    "shape": 1.0,
    "position": 1.2,
    "size": 0.6,
    "count": 1.6,
    "relation": 1.0,
    "absent": 0.4,
    "background": 0.3,
    "box": 1.4,
    "boxes": 0.4,
    "describe": 1.2,
}
_MIN_CONTRAST = 95.0
_SMALL, _LARGE = (0.055, 0.075), (0.115, 0.15)  # half the height, as a share of the canvas's shorter side
_CLEAR = 0.045  # how far from a cell's border, as a share of the side, a place is still named


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape at its place; `cell` is None where it lies too close to a border to be named."""

    colour: int
    shape: int
    is_large: bool
    x: float
    y: float
    box: tuple[float, float, float, float]
    cell: int | None

    def name(self, language: str) -> str:
        """Colour and shape."""
        english, chinese = COLOURS[self.colour][1:], SHAPES[self.shape]
        return f"{english[0]} {chinese[0]}" if language == "en" else english[1] + chinese[2]


def _corners(shape: int, x: float, y: float, r: float) -> tuple[float, float, float, float]:
    wide = {4: 1.55, 5: 0.8}.get(shape, 1.0) * r
    high = 0.75 * r if shape == 4 else r
    return x - wide, y - high, x + wide, y + high


def draw_shape(pen: ImageDraw.ImageDraw, shape: int, box: tuple[float, float, float, float], rgb: tuple) -> None:
    """Fill one shape that touches all sides of `box`."""
    left, top, right, bottom = box
    x, y, r = (left + right) / 2, (top + bottom) / 2, (bottom - top) / 2
    if shape == 0:
        pen.ellipse(box, fill=rgb)
    elif shape in (1, 4):
        pen.rectangle(box, fill=rgb)
    elif shape == 2:
        pen.polygon(((x, top), (right, bottom), (left, bottom)), fill=rgb)
    elif shape == 3:
        points = [(sin(i * pi / 5) * (1 if i % 2 == 0 else 0.42), -cos(i * pi / 5)) for i in range(10)]
        pen.polygon([(x + r * px, y + r * py * (1 if i % 2 == 0 else 0.42)) for i, (px, py) in enumerate(points)], rgb)
    elif shape == 5:
        pen.polygon(((x, top), (right, y), (x, bottom), (left, y)), fill=rgb)
    elif shape == 6:
        pen.rectangle((x - 0.32 * r, top, x + 0.32 * r, bottom), fill=rgb)
        pen.rectangle((left, y - 0.32 * r, right, y + 0.32 * r), fill=rgb)
    else:
        pen.ellipse((left, top, x + 0.03 * r, top + 1.06 * r), fill=rgb)
        pen.ellipse((x - 0.03 * r, top, right, top + 1.06 * r), fill=rgb)
        pen.polygon(((left + 0.09 * r, top + 0.8 * r), (right - 0.09 * r, top + 0.8 * r), (x, bottom)), fill=rgb)
        pen.rectangle((x - 0.45 * r, top + 0.5 * r, x + 0.45 * r, top + 0.82 * r), fill=rgb)


def find_cell(canvas: Canvas, x: float, y: float) -> int | None:
    """The cell of the 3x3 grid, if the point is clear of its borders."""
    numbers = []
    for part in (x / canvas.width, y / canvas.height):
        if min(abs(part - 1 / 3), abs(part - 2 / 3)) < _CLEAR:
            return None
        numbers.append(int(part * 3))
    return numbers[1] * 3 + numbers[0]


def place_things(canvas: Canvas, chance: Chance, background: str, most: int = 8) -> list[Thing]:
    """Up to `most` shapes that do not overlap, some of the same kind."""
    ground = BACKGROUNDS[background][0]
    colours = [i for i, (rgb, *_) in enumerate(COLOURS) if distance(rgb, ground) > _MIN_CONTRAST]
    number = chance.between(1, most)
    if chance.is_true(0.5):  # few kinds, so that there is something to count
        colours = chance.draw(colours, chance.between(1, 3))
    shapes = chance.draw(range(len(SHAPES)), chance.between(1, 3) if chance.is_true(0.45) else len(SHAPES))
    in_cells = chance.is_true(0.6)
    cells = chance.draw(range(9), number)
    side, things = min(canvas.width, canvas.height), list[Thing]()
    for cell in cells:
        is_large = chance.is_true(0.4)
        radius = side * chance.uniform(*(_LARGE if is_large else _SMALL))
        shape = chance.pick(shapes)
        for _ in range(12):
            if in_cells:
                x = canvas.width * (cell % 3 + chance.uniform(0.3, 0.7)) / 3
                y = canvas.height * (cell // 3 + chance.uniform(0.3, 0.7)) / 3
            else:
                x, y = canvas.width * chance.uniform(0.06, 0.94), canvas.height * chance.uniform(0.06, 0.94)
            box = _corners(shape, x, y, radius)
            inside = box[0] >= 2 and box[1] >= 2 and box[2] < canvas.width - 2 and box[3] < canvas.height - 2
            if inside and not any(_overlap(box, thing.box, 0.015 * side) for thing in things):
                things.append(Thing(chance.pick(colours), shape, is_large, x, y, box, find_cell(canvas, x, y)))
                break
    return things or place_things(canvas, chance, background, most)


def _overlap(first: tuple[float, ...], second: tuple[float, ...], gap: float) -> bool:
    apart = first[2] + gap < second[0] or second[2] + gap < first[0]
    return not (apart or first[3] + gap < second[1] or second[3] + gap < first[1])


def draw_things(pen: ImageDraw.ImageDraw, things: list[Thing], chance: Chance) -> None:
    """Draw all, each in a colour close to its name's."""
    for thing in things:
        draw_shape(pen, thing.shape, thing.box, vary(COLOURS[thing.colour][0], chance, 12))


def list_things(things: list[Thing], canvas: Canvas, language: str) -> str:
    """All things with size and place, by rows of the 3x3 grid, then from left to right."""
    ordered = sorted(things, key=lambda t: (int(3 * t.y / canvas.height), t.x))
    parts = []
    for thing in ordered:
        at = "" if thing.cell is None else PLACES[thing.cell][language == "zh"]
        name = thing.name(language)
        if language == "en":
            parts.append(f"a {'large' if thing.is_large else 'small'} {name}{' ' + at if at else ''}")
        else:
            parts.append(f"{at + '的' if at else ''}{'大' if thing.is_large else '小'}{name}")
    return join(language, parts)


class ShapeScene:
    """One picture of shapes."""

    tasks: Mapping[str, float] = TASKS

    def __init__(self, canvas: Canvas, chance: Chance) -> None:
        """Draw it."""
        self.canvas = canvas
        image, pen, self.background = paint_background(canvas, chance)
        self.things = place_things(canvas, chance, self.background)
        draw_things(pen, self.things, chance)
        self.pictures = (Picture(image, canvas.max_tiles),)

    def ask(self, task: str, language: str, chance: Chance) -> Turn | None:
        """See `Scene.ask`."""
        facts = _ASKERS[task](self, language, chance)
        if facts is None:
            return None
        kind, fields = facts
        return Turn(task, language, *fill(chance.pick(WORDINGS[language][kind]), fields))

    def unique(self) -> list[Thing]:
        """Things whose colour and shape no other has."""
        kinds = [(thing.colour, thing.shape) for thing in self.things]
        return [thing for thing, kind in zip(self.things, kinds, strict=True) if kinds.count(kind) == 1]

    def fields(self, thing: Thing, language: str) -> dict[str, object]:
        """How a thing is called."""
        zh = language == "zh"
        at = "" if thing.cell is None else PLACES[thing.cell][zh]
        shape = SHAPES[thing.shape][2 if zh else 0]
        return {"colour": COLOURS[thing.colour][1 + zh], "shape": shape, "thing": thing.name(language), "at": at}


Facts = tuple[str, dict[str, object]] | None


def _by_place(scene: ShapeScene) -> list[Thing]:
    cells = [thing.cell for thing in scene.things]
    named = [thing for thing in scene.things if thing.cell is not None and cells.count(thing.cell) == 1]
    # A thing near a border might be meant as well.
    return named if None not in cells else []


def _ask_attribute(scene: ShapeScene, language: str, chance: Chance, *, asked: str, given: str) -> Facts:
    values = [getattr(thing, given) for thing in scene.things]
    by_kind = [thing for thing in scene.things if values.count(getattr(thing, given)) == 1]
    by_place = _by_place(scene)
    if not by_kind and not by_place:
        return None
    way = given if by_kind and (not by_place or chance.is_true(0.6)) else "place"
    thing = chance.pick(by_place if way == "place" else by_kind)
    return f"{asked} by {way}", scene.fields(thing, language)


def _ask_colour(scene: ShapeScene, language: str, chance: Chance) -> Facts:
    return _ask_attribute(scene, language, chance, asked="colour", given="shape")


def _ask_shape(scene: ShapeScene, language: str, chance: Chance) -> Facts:
    return _ask_attribute(scene, language, chance, asked="shape", given="colour")


def _ask_position(scene: ShapeScene, language: str, chance: Chance) -> Facts:
    known = [thing for thing in scene.unique() if thing.cell is not None]
    return ("position", scene.fields(chance.pick(known), language)) if known else None


def _ask_size(scene: ShapeScene, language: str, chance: Chance) -> Facts:
    known = scene.unique()
    if not known:
        return None
    thing = chance.pick(known)
    size = ("large" if thing.is_large else "small") if language == "en" else ("大" if thing.is_large else "小")
    if language == "en":
        answer = "Yes, it is large." if thing.is_large else "No, it is small."
    else:
        answer = "是的，它是大的。" if thing.is_large else "不，它是小的。"
    return "size", {**scene.fields(thing, language), "size": size, "yes_large": answer}


def _ask_count(scene: ShapeScene, language: str, chance: Chance) -> Facts:
    way = chance.between(0, 3)
    sample = chance.pick(scene.things)
    colour, shape = (chance.between(0, 10), chance.between(0, 7)) if chance.is_true(0.1) else (-1, -1)
    colour, shape = (sample.colour, sample.shape) if colour < 0 else (colour, shape)
    has_colour, has_shape = way in (1, 3), way in (2, 3)
    matching = [
        thing
        for thing in scene.things
        if (not has_colour or thing.colour == colour) and (not has_shape or thing.shape == shape)
    ]
    number = len(matching)
    return "count", {
        "number": number,
        **name_kind(language, number, *(colour if has_colour else None, shape if has_shape else None)),
    }


def name_kind(language: str, number: int, colour: int | None, shape: int | None) -> dict[str, object]:
    """Several things of a colour, a shape, both or neither: `things`, and for English `there_are`."""
    if language == "zh":
        noun = "图形" if shape is None else SHAPES[shape][2]
        return {"things": ("" if colour is None else COLOURS[colour][2]) + noun}
    start = "" if colour is None else COLOURS[colour][1] + " "
    one, many = ("object", "objects") if shape is None else SHAPES[shape][:2]
    verb, amount = ("is", "1") if number == 1 else ("are", "no" if number == 0 else str(number))
    return {"things": start + many, "there_are": f"there {verb} {amount} {start + (one if number == 1 else many)}"}


def _ask_relation(scene: ShapeScene, language: str, chance: Chance) -> Facts:
    known = scene.unique()
    if len(known) < 2:
        return None
    first, second = chance.draw(known, 2)
    dx, dy = (first.x - second.x) / scene.canvas.width, (first.y - second.y) / scene.canvas.height
    if max(abs(dx), abs(dy)) < 0.15 or 0.6 < abs(dx) / (abs(dy) + 1e-9) < 1.7:
        return None
    side = (1 if dx > 0 else 0) if abs(dx) > abs(dy) else (3 if dy > 0 else 2)
    asked = side if chance.is_true(0.5) else side ^ 1
    zh = language == "zh"
    return "relation", {
        "first": first.name(language),
        "second": second.name(language),
        "side": SIDES[side][zh],
        "relation": SIDES[asked][zh],
        "yes": yes(language, asked == side),
    }


def _ask_absent(scene: ShapeScene, language: str, chance: Chance) -> Facts:
    known = [thing for thing in scene.unique() if thing.cell is not None]
    if known and chance.is_true(0.4):
        return "present", scene.fields(chance.pick(known), language)
    missing = [shape for shape in range(len(SHAPES)) if all(thing.shape != shape for thing in scene.things)]
    if not missing:
        return None
    thing = Thing(chance.between(0, 10), chance.pick(missing), False, 0, 0, (0, 0, 0, 0), None)
    return "absent", scene.fields(thing, language)


def _ask_background(scene: ShapeScene, language: str, chance: Chance) -> Facts:
    return "background", {"background": BACKGROUNDS[scene.background][1 + (language == "zh")]}


def _ask_box(scene: ShapeScene, language: str, chance: Chance) -> Facts:
    known = scene.unique()
    if not known:
        return None
    thing = chance.pick(known)
    return "box", {"thing": thing.name(language), "box": scene.canvas.box(thing.box)}


def _ask_boxes(scene: ShapeScene, language: str, chance: Chance) -> Facts:
    shape = chance.pick(scene.things).shape
    matching = sorted((t for t in scene.things if t.shape == shape), key=lambda t: (t.box[1], t.box[0]))
    if not 2 <= len(matching) <= 4:
        return None
    boxes = ", ".join(scene.canvas.box(thing.box) for thing in matching)
    return "boxes", {"box": boxes, **name_kind(language, len(matching), None, shape)}


def _ask_describe(scene: ShapeScene, language: str, chance: Chance) -> Facts:
    listed = list_things(scene.things, scene.canvas, language)
    ground = BACKGROUNDS[scene.background][1 + (language == "zh")]
    end = f", on a {ground} background." if language == "en" else f"，背景是{ground}的。"
    return "describe", {"content": listed + end}


_ASKERS: dict[str, Callable[[ShapeScene, str, Chance], Facts]] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "position": _ask_position,
    "size": _ask_size,
    "count": _ask_count,
    "relation": _ask_relation,
    "absent": _ask_absent,
    "background": _ask_background,
    "box": _ask_box,
    "boxes": _ask_boxes,
    "describe": _ask_describe,
}
assert set(_ASKERS) == set(TASKS)
assert all(len(numbers) >= 2 for numbers in ORDINALS.values())
