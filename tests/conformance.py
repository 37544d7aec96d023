"""Writes docs/en/conformance.md and docs/zh/conformance.md: what a served checkpoint's prompts, pictures and stops are.

`python -m tests.conformance` in the repository's folder writes both. Texts, tiles and stops come from the code, ids
from the goldens, and tests hold the code to them; `tests/golden/test_conformance.py` holds the pages to this module.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conversations import CONVERSATIONS, write_segments
from tests.family import FOLDER, HUGGING_FACE, NOT_YET, SERVED, find_folder
from tests.qwen_vocabulary import find_special_ids
from tilewise.catalogue import Release, find_candidates
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.inputs.media.tiling import choose_grid, count_tiles
from tilewise.inputs.text.layout import render
from tilewise.inputs.text.profile_choice import choose_profile
from tilewise.inputs.text.profiles import PROFILES, PromptProfile
from tilewise.types import TilingParameters

ROOT = Path(__file__).resolve().parents[1]
_GOLDEN = ROOT / "tests" / "golden"
_TEMPLATES = ROOT / "tests" / "data" / "conformance"
_INTERNLM2 = "InternLM2"
PICTURES = (
    *((448, 448), (224, 224), (600, 400), (640, 480), (800, 600), (1024, 1024)),
    *((1280, 720), (1920, 1080), (3840, 2160), (1240, 1754), (2480, 3508), (1000, 100)),
)
Table = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Words:
    """One language's page: a template, and what is written into it."""

    template: str
    checkpoints: tuple[str, ...]
    undecided: tuple[str, ...]
    tiles: tuple[str, ...]
    not_yet: tuple[str, ...]
    official: str
    both_layouts: str
    tested: Mapping[str, str]
    conversations: Mapping[str, str]
    comma: str
    colon: str
    of: str
    option: str
    ids: str


ENGLISH = Words(
    template="en.md",
    checkpoints=("checkpoint", "language model", "layout", "prompt profile", "vocabulary", "stops", "verified"),
    undecided=("checkpoints", "taken", "to be named for the other"),
    tiles=("picture", "columns x rows", "tiles with the thumbnail", "tokens"),
    not_yet=("checkpoint", "language model", "class"),
    official="official",
    both_layouts="official, Hugging Face",
    tested={"shapes": "shapes", "ids": "ids", "answer": "answer"},
    conversations={name: name for name in CONVERSATIONS},
    comma=", ",
    colon=": ",
    of="Of",
    option="an option",
    ids="Ids",
)
CHINESE = Words(
    template="zh.md",
    checkpoints=("权重", "语言模型", "格式", "提示词模板", "词表", "结束符", "验证方式"),
    undecided=("权重", "默认采用", "另一个需要指定"),
    tiles=("图片", "列 x 行", "切块数（含缩略图）", "token 数"),
    not_yet=("权重", "语言模型", "类"),
    official="官方",
    both_layouts="官方、Hugging Face",
    tested={"shapes": "形状", "ids": "id", "answer": "回答"},
    conversations={"no picture": "无图", "one picture": "一张图", "two pictures": "两张图", "two turns": "两轮"},
    comma="、",
    colon="：",
    of="用于",
    option="可选",
    ids="id",
)
PAGES = {"docs/en/conformance.md": ENGLISH, "docs/zh/conformance.md": CHINESE}


def write_page(words: Words) -> str:
    """The whole page in one language."""
    parts = {
        "hugging_face": words.comma.join(HUGGING_FACE),
        "checkpoints": _write_table(words.checkpoints, [_describe(release, words) for release in SERVED]),
        "undecided": _write_table(words.undecided, _list_undecided()),
        "prompts": "\n\n".join(_write_profile(profile, words) for profile in PROFILES.values()),
        "tiles": _write_table(words.tiles, [_cut(*size) for size in PICTURES]),
        "not_yet": _write_table(
            words.not_yet, [(release.name, release.language_model, f"`{release.architecture}`") for release in NOT_YET]
        ),
    }
    page = (_TEMPLATES / words.template).read_text(encoding="utf-8")
    for name, part in parts.items():
        page = page.replace("{" + name + "}", part)
    return page


def find_vocabulary(release: Release) -> str:
    """Whose vocabulary a checkpoint has."""
    return release.language_model.partition("-")[0].replace("InternLM2.5", _INTERNLM2)


def _describe(release: Release, words: Words) -> tuple[str, ...]:
    is_in_both = f"{release.name}-hf".lower() in {name.lower() for name in HUGGING_FACE}
    vocabulary = find_vocabulary(release)
    stops = (f"`{name}` {_find_ids(vocabulary)[name]}" for name in PROFILES[release.profile].stop_words)
    return (
        f"[{release.name}](https://huggingface.co/{release.hub_id})",
        release.language_model,
        words.both_layouts if is_in_both else words.official,
        f"`{release.profile}`",
        vocabulary,
        ", ".join(stops),
        ", ".join(words.tested[part] for part in release.tested.split(", ")),
    )


def _find_ids(vocabulary: str) -> dict[str, int]:
    if vocabulary != _INTERNLM2:
        return find_special_ids(vocabulary)
    config = json.loads((ROOT / "tests/data/internvl-chat-v1-5/tokenizer_config.json").read_text(encoding="utf-8"))
    return {token["content"]: int(token_id) for token_id, token in config["added_tokens_decoder"].items()}


def _list_undecided() -> list[tuple[str, ...]]:
    rows: dict[tuple[Release, ...], tuple[str, ...]] = {}
    for release in SERVED:
        model = load_model_config(find_folder(release))
        candidates = find_candidates(model)
        profiles = [candidate.profile for candidate in candidates]
        if len(set(profiles)) > 1:
            taken = choose_profile(model).name
            others = [name for name in profiles if name != taken]
            names = ", ".join(candidate.name for candidate in candidates)
            rows[candidates] = (names, f"`{taken}`", ", ".join(f"`{name}`" for name in others))
    return list(rows.values())


def _write_profile(profile: PromptProfile, words: Words) -> str:
    users = [release for release in SERVED if release.profile == profile.name]
    lines = [
        f"### `{profile.name}`",
        f"{words.of}{words.colon}{words.comma.join(release.name for release in users) or words.option}",
    ]
    lines += [_write_text(profile, name, words) for name in CONVERSATIONS]
    for vocabulary, ids in _find_golden_ids(profile.name).items():
        rows = [f"{words.conversations[name]}{words.colon}{json.dumps(ids[name])}" for name in CONVERSATIONS]
        lines.append(f"{words.ids}, {vocabulary}{words.colon.rstrip()}\n\n" + _fence("\n\n".join(rows)))
    return "\n\n".join(lines)


def _write_text(profile: PromptProfile, conversation: str, words: Words) -> str:
    special_names = frozenset(_find_ids("Qwen3")) | frozenset(_find_ids(_INTERNLM2))
    text = write_segments(render(profile, CONVERSATIONS[conversation], special_names))
    return f"{words.conversations[conversation]}{words.colon.rstrip()}\n\n{_fence(text)}"


def _find_golden_ids(profile: str) -> dict[str, dict[str, Any]]:
    """The ids of each conversation by vocabulary."""
    internlm2 = json.loads((_GOLDEN / "prompt_ids_internlm2.json").read_text(encoding="utf-8"))
    qwen = json.loads((_GOLDEN / "prompt_ids_qwen.json").read_text(encoding="utf-8"))
    golden = {_INTERNLM2: internlm2, **qwen}
    return {vocabulary: ids[profile] for vocabulary, ids in golden.items() if profile in ids}


def _cut(width: int, height: int) -> tuple[str, ...]:
    tilings = {
        TilingParameters(
            max_tiles=model.max_dynamic_patch, min_tiles=model.min_dynamic_patch, use_thumbnail=model.use_thumbnail
        )
        for model in map(load_model_config, _list_folders())
    }
    (tiling,) = tilings  # all cut alike
    columns, rows = choose_grid(width, height, tiling)
    num_tiles = count_tiles(width, height, tiling)
    return f"{width}x{height}", f"{columns}x{rows}", str(num_tiles), f"{256 * num_tiles:,}"


def _list_folders() -> list[Path]:
    return [*map(find_folder, SERVED), *(FOLDER / name for name in HUGGING_FACE)]


def _write_table(columns: Sequence[str], rows: Table) -> str:
    return "\n".join(_write_row(cells) for cells in (columns, ["---"] * len(columns), *rows))


def _write_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _fence(text: str) -> str:
    return f"```text\n{text}\n```"


def write_pages(write: Callable[[Path, str], object]) -> None:
    """Hand each page's path and text to `write`."""
    for path, words in PAGES.items():
        write(ROOT / path, write_page(words))


if __name__ == "__main__":
    write_pages(lambda path, text: path.write_text(text, encoding="utf-8"))
