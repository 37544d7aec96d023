"""What counts as a right answer, and how sure a share of them is."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt

from training.scenes.sample import Turn

from tilewise.inputs.text.boxes import parse_boxes

_Z = 1.96
MIN_IOU = 0.5


def is_right(turn: Turn, answer: str) -> bool:
    """To the letter; for a box the same label and an overlap of at least one half.

    `answer` is decoded with its special tokens, without the one that ends it.
    """
    if turn.task != "box":
        return answer.strip() == turn.answer
    said, meant = parse_boxes(answer), parse_boxes(turn.answer)
    if len(said) != 1 or said[0].label != meant[0].label:
        return False
    return overlap(*((box.x1, box.y1, box.x2, box.y2) for box in (said[0], meant[0]))) >= MIN_IOU


def overlap(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0, wide) * max(0, high)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared) if shared else 0.0


def interval(num_right: int, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not number:
        return 0.0, 1.0
    share, z2 = num_right / number, _Z * _Z
    middle = (share + z2 / (2 * number)) / (1 + z2 / number)
    half = _Z / (1 + z2 / number) * sqrt(share * (1 - share) / number + z2 / (4 * number * number))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers of a task in a language."""

    task: str
    language: str
    num_right: int
    number: int


def tally(results: Iterable[tuple[Turn, str]]) -> list[Score]:
    """Count the right answers by task and language, in the order in which they appear."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for turn, answer in results:
        count = counts[turn.task, turn.language]
        count[0] += is_right(turn, answer)
        count[1] += 1
    return [Score(*key, *count) for key, count in counts.items()]


def show_table(scores: list[Score]) -> str:
    """A table for people: a row a task, both languages together and each with its interval, in percent."""
    lines = [f"{'task':<10}{'all':>7} {'interval':>15} {'en':>7}{'zh':>7}{'number':>8}"]
    for task in dict.fromkeys(score.task for score in scores):
        own = [score for score in scores if score.task == task]
        right, number = sum(score.num_right for score in own), sum(score.number for score in own)
        low, high = interval(right, number)
        shares = {score.language: f"{100 * score.num_right / score.number:.1f}" for score in own}
        bounds = f"{100 * low:.1f} to {100 * high:.1f}"
        ends = f"{shares.get('en', '-'):>7}{shares.get('zh', '-'):>7}{number:>8}"
        lines.append(f"{task:<10}{100 * right / number:>7.1f} {bounds:>15} {ends}")
    return "\n".join(lines)


def as_data(scores: list[Score]) -> dict[str, dict[str, list[int]]]:
    """{task: {language: [right, number]}}, for a JSON line."""
    data: dict[str, dict[str, list[int]]] = {}
    for score in scores:
        data.setdefault(score.task, {})[score.language] = [score.num_right, score.number]
    return data


def as_scores(data: Mapping[str, dict[str, list[int]]]) -> list[Score]:
    """What `as_data` was made of."""
    return [Score(task, language, *counts) for task, own in data.items() for language, counts in own.items()]
