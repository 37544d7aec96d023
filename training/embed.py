"""Put a trained model into the package: `python -m training.embed RUN/model --logs LOG… --scores SCORES…`.

Writes `src/tilewise/demo/`: the model folder with its card, the curve as a picture, the sample picture, and 64
calibration scenes of all kinds, none of which training or evaluation draws. Needs matplotlib.
"""

import argparse
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from training.batches import cut_tiles
from training.checkpoints import load_model
from training.draw_picture import draw
from training.network import create_model
from training.scenes import create_sample
from training.scores import as_scores, show_table

from tilewise import demo
from tilewise.checkpoint.hf_config import load_model_config

# Tiles of the calibration scenes, in turn: single tiles mostly, as in use.
_COUNTS = (1, 1, 3, 1, 2, 1, 7, 1, 1, 5, 1, 13, 1, 2, 1, 9)
_NUM_SCENES = 64


def write_calibration(folder: Path) -> None:
    """64 scenes as PNG files, and `scenes.jsonl` with a line for each: its pictures and its turns."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    with (folder / "scenes.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(_NUM_SCENES):
            sample = create_sample(str(number), _COUNTS[number % len(_COUNTS)], "calibration")
            names = [f"{number:02d}-{i}.png" for i in range(len(sample.pictures))]
            for name, picture in zip(names, sample.pictures, strict=True):
                picture.image.save(folder / name, optimize=True)
            line = {
                "images": names,
                "num_tiles": sum(len(cut_tiles(picture, 448)) for picture in sample.pictures),
                "turns": [[turn.question, turn.answer] for turn in sample.turns],
            }
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_curve(logs: Sequence[Path]) -> Iterator[tuple[int, float]]:
    """(step, loss) of all logs in order; of a stretch that was trained twice, the later."""
    points: dict[int, float] = {}
    for path in logs:
        own = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        own = [line for line in own if "loss" in line]
        points = {step: loss for step, loss in points.items() if own and step < own[0]["step"]}
        points |= {line["step"]: line["loss"] for line in own}
    yield from sorted(points.items())


def draw_curve(points: Sequence[tuple[int, float]]) -> bytes:
    """The loss of an answer's token over the steps, as a PNG file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot(*zip(*points, strict=True), linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss per token of answer", yscale="log")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file.getvalue()


def read_scores(paths: Sequence[Path]) -> dict[str, dict[str, list[int]]]:
    """The scores of all JSON lines in the files; a task that was asked with fewer tiles is one of its own."""
    scores: dict[str, dict[str, list[int]]] = {}
    for path in paths:
        for line in path.read_text("utf-8").splitlines():
            if line.startswith("{"):
                summary = json.loads(line)
                limit = summary["max_tiles"]
                scores |= {f"{task} ({limit})" if limit else task: own for task, own in summary["scores"].items()}
    return {task: scores[task] for task in sorted(scores)}


def write_card(folder: Path, number: int, step: int, scores: Mapping[str, dict[str, list[int]]]) -> None:
    """The model card, from `card.md` and the scores of every task."""
    template = (Path(__file__).parent / "card.md").read_text("utf-8")
    table = show_table(as_scores(scores))
    questions = min(sum(counts[1] for counts in own.values()) for own in scores.values())
    card = template.format(parameters=f"{number:,}", steps=f"{step:,}", scores=table, questions=f"{questions:,}")
    (folder / "README.md").write_text(card, "utf-8")


def main() -> None:
    """Write everything; an old model's files are replaced."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model folder of a training")
    parser.add_argument("--logs", type=Path, nargs="+", required=True, help="log.jsonl of every call, in order")
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="JSON lines of `training.evaluate`")
    arguments = parser.parse_args()
    folder = demo.model_folder()
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    shutil.copytree(arguments.model, folder, dirs_exist_ok=True)
    model = create_model(load_model_config(folder))
    progress = load_model(folder, model)
    (folder / "curve.png").write_bytes(draw_curve(list(read_curve(arguments.logs))))
    number = sum(parameter.numel() for parameter in model.parameters())
    write_card(folder, number, progress.step, read_scores(arguments.scores))
    write_calibration(demo.calibration_folder())
    draw().save(demo.picture_path(), optimize=True)


if __name__ == "__main__":
    main()
