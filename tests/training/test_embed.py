import json

from PIL import Image
from training.embed import read_curve, write_calibration, write_card
from training.scenes import EVALUATED, create_sample

from tilewise.inputs.media.tiling import choose_grid
from tilewise.types import TilingParameters


def test_64_calibration_scenes_are_written_with_their_questions(tmp_path):
    (tmp_path / "old.png").write_bytes(b"")
    write_calibration(tmp_path)
    scenes = [json.loads(line) for line in (tmp_path / "scenes.jsonl").read_text("utf-8").splitlines()]
    assert len(scenes) == 64
    assert {name for scene in scenes for name in scene["images"]} == {p.name for p in tmp_path.glob("*.png")}
    assert all(question and answer for scene in scenes for question, answer in scene["turns"])
    assert {1, 2, 3, 5, 7, 9, 13} == {scene["num_tiles"] for scene in scenes}
    large = next(scene for scene in scenes if scene["num_tiles"] == 13)
    with Image.open(tmp_path / large["images"][0]) as picture:
        columns, rows = choose_grid(*picture.size, TilingParameters())
    assert columns * rows == 12


def test_calibration_scenes_are_not_those_of_training():
    pictures = [create_sample("0", 1, purpose).pictures[0].image.tobytes() for purpose in ("training", "calibration")]
    assert pictures[0] != pictures[1]


def test_a_stretch_that_was_trained_twice_counts_once(tmp_path):
    for name, steps in (("a", (10, 20, 30)), ("b", (15, 25))):
        lines = [json.dumps({"step": step, "loss": step / 10}) for step in steps]
        (tmp_path / name).write_text("\n".join([*lines, json.dumps({"step": 99, "scores": {}})]), "utf-8")
    assert list(read_curve([tmp_path / "a", tmp_path / "b"])) == [(10, 1.0), (15, 1.5), (25, 2.5)]


def test_the_card_says_how_many_questions_every_task_had_at_least(tmp_path):
    scores = {task: {"en": [9, 10], "zh": [8, 10]} for task in EVALUATED} | {"talk": {"en": [3, 3], "zh": [4, 4]}}
    write_card(tmp_path, 13_760_000, 30_000, scores)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "Held-out scenes, 7 questions a task" in card
    assert "13,760,000" in card
    assert all(task in card for task in EVALUATED)
