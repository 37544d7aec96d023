"""Scenes with questions and answers, each a function of its name: for training, and held out for evaluation."""

from collections.abc import Mapping

from training.scenes.charts import ChartScene, TableScene
from training.scenes.pairs import PairScene
from training.scenes.sample import LANGUAGES, Chance, Sample, Scene, Turn, choose_canvas
from training.scenes.shapes import ShapeScene
from training.scenes.talk import TalkScene
from training.scenes.texts import TextScene

# Tasks that are scored, with the kind of scene that each is asked about.
EVALUATED = {
    "colour": "shapes",
    "shape": "shapes",
    "position": "shapes",
    "count": "shapes",
    "size": "shapes",
    "relation": "shapes",
    "box": "shapes",
    "latin": "texts",
    "chinese": "texts",
    "small": "small",
    "chart": "chart",
    "table": "table",
    "pair": "pair",
    "talk": "talk",
}
# How many tiles the held-out pictures of a kind of scene have, and how often.
_HELD_OUT_TILES: dict[str, dict[int, float]] = {
    "small": {7: 0.5, 9: 0.25, 13: 0.25},
    "pair": {2: 1.0},
    "talk": {0: 1.0},
}
_DEFAULT_TILES = {1: 0.8, 3: 0.1, 7: 0.1}
# Two pictures take so many tiles each.
_PAIRS = {2: (1, 1), 6: (3, 3), 14: (7, 7)}
_MANY_TILES = 7  # from here on a canvas has room for text that the thumbnail does not show


def kinds_of(num_tiles: int) -> dict[str, float]:
    """Kinds of scenes that can have `num_tiles`, and how often each is drawn for training."""
    if num_tiles == 0:
        return {"talk": 1.0}
    if num_tiles in _PAIRS:
        return {"pair": 1.0}
    if num_tiles >= _MANY_TILES:
        return {"small": 5.0, "shapes": 2.0, "texts": 2.0, "chart": 0.5, "table": 0.5}
    return {"shapes": 4.0, "texts": 5.0, "chart": 1.0, "table": 1.0}


def create_scene(kind: str, num_tiles: int, chance: Chance, task: str = "") -> Scene:
    """Draw a scene whose pictures take `num_tiles` in all; of text only the kind that `task` asks for."""
    if kind == "talk":
        return TalkScene()
    if kind == "pair":
        first, second = _PAIRS[num_tiles]
        return PairScene((choose_canvas(first, chance), choose_canvas(second, chance)), chance)
    canvas = choose_canvas(num_tiles, chance, is_large=kind == "small")
    if kind in ("texts", "small"):
        only = task if task in ("latin", "chinese") else None
        return TextScene(canvas, chance, is_small=kind == "small", only=only)
    return {"shapes": ShapeScene, "chart": ChartScene, "table": TableScene}[kind](canvas, chance)


def create_sample(
    name: str, num_tiles: int, purpose: str = "training", emphasis: Mapping[str, float] | None = None
) -> Sample:
    """A scene with four to eight turns in both languages, fewer where there is less to ask.

    Scenes of another `purpose` are other scenes. `emphasis` multiplies how often a kind or a task is drawn.
    """
    chance = Chance(f"{purpose}/{name}")
    emphasis = emphasis or {}
    kinds = {kind: weight * emphasis.get(kind, 1.0) for kind, weight in kinds_of(num_tiles).items()}
    scene = create_scene(chance.weighted(kinds), num_tiles, chance)
    tasks = {task: weight * emphasis.get(task, 1.0) for task, weight in scene.tasks.items()}
    wanted = chance.between(4, 8)
    turns: dict[tuple[str, str], Turn] = {}
    for _ in range(3 * wanted):
        turn = scene.ask(chance.weighted(tasks), chance.pick(LANGUAGES), chance)
        if turn is not None:
            turns.setdefault((turn.question, turn.answer), turn)
        if len(turns) == wanted:
            break
    return Sample(name, scene.pictures, tuple(turns.values()))


def create_question(task: str, language: str, number: int) -> Sample:
    """Question `number` of a task on a scene that was never trained on."""
    kind = EVALUATED[task]
    attempt = 0
    while True:
        chance = Chance(f"held-out/{task}/{language}/{number}/{attempt}")
        num_tiles = chance.weighted(_HELD_OUT_TILES.get(kind, _DEFAULT_TILES))
        scene = create_scene(kind, num_tiles, chance, task)
        turn = scene.ask(task, language, chance)
        if turn is not None:
            return Sample(f"{task}/{language}/{number}", scene.pictures, (turn,))
        attempt += 1
