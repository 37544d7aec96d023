"""Bar charts with their values printed, and small tables."""

from collections.abc import Mapping

from training.scenes.letters import LATIN_FONTS, MIXED_FONT, load_font
from training.scenes.sample import Canvas, Chance, Picture, Turn, distance, fill, paint_background, vary
from training.scenes.words import BACKGROUNDS, COLOURS, WORDINGS, join, yes

# Names as printed: of a chart's bars or a table's rows.
NAMES = {
    "en": (
        ("A", "B", "C", "D", "E", "F"),
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
        ("apple", "pear", "plum", "kiwi", "lemon", "grape"),
        ("Paris", "Rome", "Oslo", "Lima", "Cairo", "Delhi"),
    ),
    "zh": (
        ("甲", "乙", "丙", "丁"),
        ("一月", "二月", "三月", "四月", "五月", "六月"),
        ("苹果", "香蕉", "橙子", "葡萄", "西瓜", "草莓"),
        ("北京", "上海", "广州", "深圳", "南京", "杭州"),
    ),
}
COLUMNS = {"en": ("price", "number", "weight", "age"), "zh": ("价格", "数量", "重量", "年龄")}


class _Printed:
    """A picture with names in one language."""

    def __init__(self, canvas: Canvas, chance: Chance) -> None:
        self.canvas = canvas
        self.image, self.pen, background = paint_background(canvas, chance)
        self.is_dark = sum(BACKGROUNDS[background][0]) < 380
        self.ground = BACKGROUNDS[background][0]
        self.ink = (235, 235, 235) if self.is_dark else (30, 30, 30)
        self.printed = "en" if chance.is_true(0.5) else "zh"
        self.font = chance.pick(LATIN_FONTS) if self.printed == "en" else MIXED_FONT
        self.pictures = (Picture(self.image, canvas.max_tiles),)

    def write(self, x: float, y: float, text: str, size: float) -> None:
        """Text centred on a point."""
        self.pen.text((x, y), text, fill=self.ink, font=load_font(self.font, max(8, round(size))), anchor="mm")

    def turn(self, task: str, language: str, kind: str, fields: Mapping[str, object], chance: Chance) -> Turn:
        """A wording of `kind`."""
        return Turn(task, language, *fill(chance.pick(WORDINGS[language][kind]), fields))


class ChartScene(_Printed):
    """Two to six bars, each with its value above and its name below."""

    tasks: Mapping[str, float] = {"chart": 4.0, "describe": 0.6}

    def __init__(self, canvas: Canvas, chance: Chance) -> None:
        """Draw it."""
        super().__init__(canvas, chance)
        names = chance.pick(NAMES[self.printed])
        self.names = list(names[: chance.between(2, len(names))])
        self.values = chance.draw(range(1, 100) if chance.is_true(0.6) else range(1, 21), len(self.names))
        wide, high = canvas.width, canvas.height
        left, right, bottom, top = 0.08 * wide, 0.95 * wide, 0.86 * high, 0.14 * high
        step = (right - left) / len(self.names)
        usable = [rgb for rgb, *_ in COLOURS if distance(rgb, self.ground) > 95]
        shared = chance.pick(usable) if chance.is_true(0.5) else None
        size = min(canvas.unit * chance.uniform(15, 22), 0.33 * step)
        self.pen.line((left, bottom, right, bottom), fill=self.ink, width=max(1, round(canvas.unit)))
        self.pen.line((left, top, left, bottom), fill=self.ink, width=max(1, round(canvas.unit)))
        for number, (name, value) in enumerate(zip(self.names, self.values, strict=True)):
            x = left + (number + 0.5) * step
            y = bottom - (bottom - top) * value / max(self.values)
            rgb = vary(shared or chance.pick(usable), chance, 8)
            self.pen.rectangle((x - 0.3 * step, y, x + 0.3 * step, bottom), fill=rgb)
            self.write(x, y - 0.75 * size, str(value), size)
            self.write(x, bottom + 0.9 * size, name, size)

    def ask(self, task: str, language: str, chance: Chance) -> Turn | None:
        """See `Scene.ask`."""
        if task == "describe":
            pairs = [f"{name} {value}" for name, value in zip(self.names, self.values, strict=True)]
            listed = join(language, pairs)
            count = len(pairs)
            content = f"a bar chart with {count} bars: {listed}." if language == "en" else f"一个柱状图：{listed}。"
            return self.turn(task, language, "describe", {"content": content}, chance)
        kind = chance.weighted({"value": 3.0, "highest": 1.0, "lowest": 1.0, "bars": 0.5, "higher": 1.0})
        first, second = chance.draw(range(len(self.names)), 2)
        if kind in ("highest", "lowest"):
            best = max(self.values) if kind == "highest" else min(self.values)
            first = self.values.index(best)
        is_higher = self.values[first] > self.values[second]
        fields = {
            "name": self.names[first],
            "other": self.names[second],
            "value": self.values[first],
            "number": len(self.names),
            "yes": yes(language, is_higher),
            "winner": self.names[first if is_higher else second],
        }
        return self.turn(task, language, kind, fields, chance)


class TableScene(_Printed):
    """Two to five rows under a header; the first column has the names."""

    tasks: Mapping[str, float] = {"table": 4.0, "describe": 0.6}

    def __init__(self, canvas: Canvas, chance: Chance) -> None:
        """Draw it."""
        super().__init__(canvas, chance)
        names = chance.pick(NAMES[self.printed])
        self.names = chance.draw(names, chance.between(2, min(5, len(names))))
        self.columns = chance.draw(COLUMNS[self.printed], chance.between(1, 3))
        self.values = [[chance.between(1, 99) for _ in self.columns] for _ in self.names]
        wide, high = canvas.width, canvas.height
        left, right, top = chance.uniform(0.02, 0.1) * wide, chance.uniform(0.9, 0.98) * wide, 0.06 * high
        row, column = 0.88 * high / (len(self.names) + 1), (right - left) / (len(self.columns) + 1)
        row = min(row, canvas.unit * 60)
        size = min(canvas.unit * chance.uniform(15, 22), 0.6 * row, 0.24 * column)
        grid = [
            ["", *self.columns],
            *([name, *map(str, row)] for name, row in zip(self.names, self.values, strict=True)),
        ]
        for y, cells in enumerate(grid):
            for x, cell in enumerate(cells):
                self.write(left + (x + 0.5) * column, top + (y + 0.5) * row, cell, size)
        for y in range(len(grid) + 1):
            self.pen.line((left, top + y * row, right, top + y * row), fill=self.ink)
        for x in range(len(grid[0]) + 1):
            self.pen.line((left + x * column, top, left + x * column, top + len(grid) * row), fill=self.ink)

    def ask(self, task: str, language: str, chance: Chance) -> Turn | None:
        """See `Scene.ask`."""
        if task == "describe":
            listed = join(language, self.names)
            count = len(self.names)
            english = f"a table with {count} rows: {listed}."
            content = english if language == "en" else f"一个{count}行的表格：{listed}。"
            return self.turn(task, language, "describe", {"content": content}, chance)
        row, column = chance.between(0, len(self.names) - 1), chance.between(0, len(self.columns) - 1)
        fields = {
            "name": self.names[row],
            "column": self.columns[column],
            "value": self.values[row][column],
            "number": len(self.names),
            "names": join(language, self.names),
        }
        return self.turn(task, language, "cell" if chance.is_true(0.85) else "rows", fields, chance)
