"""Two pictures to compare: which has what, the same or not, and what is different."""

from collections.abc import Mapping
from dataclasses import replace

from training.scenes.sample import Canvas, Chance, Picture, Turn, distance, fill, paint_background
from training.scenes.shapes import Thing, draw_things, list_things, place_things
from training.scenes.words import BACKGROUNDS, COLOURS, ORDINALS, PLACES, SHAPES, WORDINGS


class PairScene:
    """Two pictures of shapes: equal, with one thing changed, or unrelated."""

    tasks: Mapping[str, float] = {"pair": 5.0, "describe": 0.5}

    def __init__(self, canvases: tuple[Canvas, Canvas], chance: Chance) -> None:
        """Draw both. Pictures that differ in one thing have the same size."""
        self.change = chance.weighted({"same": 1.2, "colour": 1.2, "shape": 1.0, "removed": 1.0, "unrelated": 1.6})
        first_canvas, second_canvas = canvases
        if self.change != "unrelated":
            second_canvas = first_canvas
        self.canvases = (first_canvas, second_canvas)
        image, pen, background = paint_background(first_canvas, chance)
        first = place_things(first_canvas, chance, background, most=5)
        if self.change == "unrelated":
            other, other_pen, other_background = paint_background(second_canvas, chance)
            second = place_things(second_canvas, chance, other_background, most=5)
        else:
            other, other_pen, _ = paint_background(first_canvas, chance)
            other_pen.rectangle((0, 0, first_canvas.width, first_canvas.height), fill=image.getpixel((0, 0)))
            second = self._changed(first, background, chance)
        self.things = (first, second)
        draw_things(pen, first, chance)
        draw_things(other_pen, second, chance)
        self.pictures = (Picture(image, first_canvas.max_tiles), Picture(other, second_canvas.max_tiles))

    def _changed(self, things: list[Thing], background: str, chance: Chance) -> list[Thing]:
        kinds = [(thing.colour, thing.shape) for thing in things]
        # What has changed must have a name of its own in both pictures, and a place.
        usable = [i for i, thing in enumerate(things) if thing.cell is not None and kinds.count(kinds[i]) == 1]
        if self.change == "same" or not usable or (self.change == "removed" and len(things) < 2):
            self.change = "same"
            return list(things)
        number = chance.pick(usable)
        old = things[number]
        if self.change == "removed":
            self.changed = (old, old)
            return [thing for thing in things if thing is not old]
        if self.change == "colour":
            ground = BACKGROUNDS[background][0]
            colours = [i for i, (rgb, *_) in enumerate(COLOURS) if distance(rgb, ground) > 95 and i != old.colour]
            colours = [i for i in colours if (i, old.shape) not in kinds]
            new = replace(old, colour=chance.pick(colours))
        else:
            # Shapes of the same outline, so that nothing overlaps.
            shapes = [i for i in (0, 1, 2, 3, 6, 7) if i != old.shape and (old.colour, i) not in kinds]
            x, y, r = old.x, old.y, (old.box[3] - old.box[1]) / 2
            new = replace(old, shape=chance.pick(shapes), box=(x - r, y - r, x + r, y + r))
        self.changed = (old, new)
        return [*things[:number], new, *things[number + 1 :]]

    def ask(self, task: str, language: str, chance: Chance) -> Turn | None:
        """See `Scene.ask`."""
        if task == "describe":
            lists = [list_things(t, c, language) for t, c in zip(self.things, self.canvases, strict=True)]
            if language == "en":
                pair = ("Describe both pictures.", f"The first picture shows {lists[0]}. The second shows {lists[1]}.")
            else:
                pair = ("请描述这两张图片。", f"第一张图片展示了{lists[0]}。第二张图片展示了{lists[1]}。")
            return Turn(task, language, *pair)
        kinds = {"which has": 2.0, "more": 1.0, "count in one": 0.7}
        if self.change != "unrelated":
            kinds = {"which has": 0.7, "same": 1.5, "difference": 2.0, "count in one": 0.5}
        kind = chance.weighted(kinds)
        fields = self._fields(kind, language, chance)
        return None if fields is None else Turn(task, language, *fill(chance.pick(WORDINGS[language][kind]), fields))

    def _fields(self, kind: str, language: str, chance: Chance) -> dict[str, object] | None:
        if kind == "which has":
            names = [{(thing.colour, thing.shape): thing for thing in things} for things in self.things]
            only = [(i, thing) for i in (0, 1) for key, thing in names[i].items() if key not in names[1 - i]]
            if not only:
                return None
            number, thing = chance.pick(only)
            return {"thing": thing.name(language), "ordinal": ORDINALS[language][number]}
        if kind == "count in one":
            number = chance.between(0, 1)
            return {"ordinal": ORDINALS[language][number], "number": len(self.things[number])}
        if kind == "more":
            return {"more": self._more(language)}
        is_same, english = self.change == "same", language == "en"
        no, yes = ("No, they are different.", "Yes, they are the same.") if english else ("不一样。", "一样。")
        none, some = ("No, they are the same.", "Yes, they are different.") if english else ("没有。", "有。")
        return {
            "yes_same": yes if is_same else no,
            "yes_different": none if is_same else some,
            "difference": self._difference(language),
        }

    def _more(self, language: str) -> str:
        first, second = map(len, self.things)
        if first == second:
            return "Both have the same number." if language == "en" else "两张一样多。"
        number = 0 if first > second else 1
        return f"The {ORDINALS['en'][number]} picture." if language == "en" else f"第{ORDINALS['zh'][number]}张图片。"

    def _difference(self, language: str) -> str:
        english = language == "en"
        if self.change == "same":
            return "There is no difference." if english else "没有不同。"
        old, new = self.changed
        at = PLACES[old.cell or 0]
        if self.change == "removed":
            name = old.name(language)
            return (
                f"The {name} {at[0]} is missing in the second picture."
                if english
                else f"第二张图片少了{at[1]}的{name}。"
            )
        if self.change == "colour":
            before, after, shape = COLOURS[old.colour], COLOURS[new.colour], SHAPES[old.shape]
            if english:
                return f"The {shape[0]} {at[0]} is {before[1]} in the first picture and {after[1]} in the second."
            return f"{at[1]}的{shape[2]}在第一张图片里是{before[2]}，在第二张图片里是{after[2]}。"
        if english:
            start = f"The object {at[0]} is a {SHAPES[old.shape][0]} in the first picture"
            return f"{start} and a {SHAPES[new.shape][0]} in the second."
        return f"{at[1]}的图形在第一张图片里是{SHAPES[old.shape][2]}，在第二张图片里是{SHAPES[new.shape][2]}。"
