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
from tilewise.checkpoint.hf_config import SERVED as SERVED_PAIRS
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.inputs.media.tiling import choose_grid, count_tiles
from tilewise.inputs.text.profiles import PROFILES, PromptProfile, choose_profile, render
from tilewise.types import TilingParameters

ROOT = Path(__file__).resolve().parents[1]
_GOLDEN = ROOT / "tests" / "golden"
_INTERNLM2 = "InternLM2"
PICTURES = (
    *((448, 448), (224, 224), (600, 400), (640, 480), (800, 600), (1024, 1024)),
    *((1280, 720), (1920, 1080), (3840, 2160), (1240, 1754), (2480, 3508), (1000, 100)),
)
Table = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Words:
    """One language's texts."""

    intro: str
    checkpoints: str
    checkpoint_columns: tuple[str, ...]
    official: str
    both_layouts: str
    tested: Mapping[str, str]
    legend: str
    undecided: str
    undecided_columns: tuple[str, ...]
    prompts: str
    prompt_legend: str
    of: str
    no_system: str
    conversations: Mapping[str, str]
    ids: str
    tiles: str
    tile_legend: str
    tile_columns: tuple[str, ...]
    not_yet: str
    not_yet_legend: str
    not_yet_columns: tuple[str, ...]


ENGLISH = Words(
    intro="""# Conformance

For each checkpoint of the InternVL family that Tilewise serves: the text of its prompt, the ids of four conversations, what ends its answers, how pictures are cut, its layout, and how all of it was verified. Another engine that is fed the same files should agree with every line.

This page is written by `python -m tests.conformance`, and a test holds it to the code.""",
    checkpoints="## Checkpoints",
    checkpoint_columns=("checkpoint", "language model", "layout", "prompt profile", "vocabulary", "stops", "verified"),
    official="official",
    both_layouts="official, Hugging Face",
    tested={"shapes": "shapes", "ids": "ids", "answer": "answer"},
    legend=f"""- **Layout.** *official* is `InternVLChatModel`, *Hugging Face* is `InternVLForConditionalGeneration`. The latter names no template: its checkpoints get the official one, and the log says so. The configurations of {", ".join(HUGGING_FACE)} are tested.
- **Vocabulary.** Whose pieces the ids below are made of: InternLM2's own `tokenizer.model`; Qwen's own pieces (`qwen.tiktoken`), with the added tokens of Qwen2, Qwen2.5 or Qwen3 and the family's nine behind them. InternLM2.5's vocabulary is taken to be InternLM2's.
- **Stops** are the profile's, whatever `config.json` and `generation_config.json` call the end.
- **Verified.** *shapes*: its `config.json`, written from published facts, loads and plans; two layers of its kind run with random weights. *ids*: the ids below are checked with its vocabulary. *answer*: so are prompt and answer of a published run, and speed was measured on a GPU in full size with random weights. No test has seen the trained weights of any checkpoint.
- A `system_message` in `config.json` that is not null takes the place of the profile's sentence. A `chat_template` of the tokenizer is the base model's, and is not used.""",
    undecided="""## What the files cannot decide

V1-5 and InternVL2 of the same size have the same `template` and the same sizes, but another prompt. One is taken, the log says which, and `--chat-template NAME` (`ChatTemplateConfig`) names the right one.""",
    undecided_columns=("checkpoints", "taken", "to be named for the other"),
    prompts="## Prompts",
    prompt_legend="""`«…»` is a special token, and `«picture N»` stands for the picture's tiles of 256 `<IMG_CONTEXT>` each. Texts up to `-official` were compared with OpenGVLab's `conversation.py` (InternVL at 2410d1d), character by character, but for `internvl-internlm2`, which is LMDeploy's form for V1-5, and the default there. A profile that ends in `-numbered` writes several pictures as the model cards do, and is an option.""",
    of="Of",
    no_system="an option",
    conversations={name: name for name in CONVERSATIONS},
    ids="Ids",
    tiles="## Tiles",
    tile_legend="""Every checkpoint above has `max_dynamic_patch` 12 and a thumbnail, so that all cut alike. A picture is resized with Pillow's bicubic filter to the grid's size, and fills 256 tokens a tile. The grids are transformers' too; its resampler is torchvision's, which differs from Pillow's in 0.5 % of the values by at most 2, and the weights were trained with Pillow's.""",
    tile_columns=("picture", "columns x rows", "tiles with the thumbnail", "tokens"),
    not_yet="## Not yet served",
    not_yet_legend="Refused by name, before a weight is read.",
    not_yet_columns=("checkpoint", "language model", "class"),
)
CHINESE = Words(
    intro="""# 一致性

对 Tilewise 支持的每个 InternVL 系列权重，本页列出：提示词文本、四段对话的 token id、结束符、切图方式、权重格式，以及每一项如何验证。其他引擎读取同样的文件，应当逐行得到相同的结果。

本页由 `python -m tests.conformance` 生成，并有测试保证它与代码一致。""",
    checkpoints="## 权重",
    checkpoint_columns=("权重", "语言模型", "格式", "提示词模板", "词表", "结束符", "验证方式"),
    official="官方",
    both_layouts="官方、Hugging Face",
    tested={"shapes": "形状", "ids": "id", "answer": "回答"},
    legend=f"""- **格式**：“官方”指 `InternVLChatModel`，“Hugging Face”指 `InternVLForConditionalGeneration`。后者不写模板，一律采用官方模板，并在日志中说明。已测试 {"、".join(HUGGING_FACE)} 的配置。
- **词表**：下文的 id 用谁的词表得到。InternLM2 用它自己的 `tokenizer.model`；Qwen 用它自己的词表（`qwen.tiktoken`），其后依次是 Qwen2、Qwen2.5 或 Qwen3 的附加 token 和本系列的九个。InternLM2.5 的词表按与 InternLM2 相同处理。
- **结束符**只由模板决定，不看 `config.json` 和 `generation_config.json`。
- **验证方式**：“形状”指按公开资料写成的 `config.json` 能够加载和规划，同类的两层模型用随机权重跑通；“id”指下文的 id 用它的词表核对过；“回答”指一次公开运行的提示词和回答也核对到 id，并用随机权重在 GPU 上按完整尺寸测过速度。任何权重都没有用训练好的参数测试过。
- `config.json` 中的 `system_message` 不为 null 时，取代模板自带的系统提示。分词器里的 `chat_template` 属于基座模型，不使用。""",
    undecided="""## 文件无法区分的情况

尺寸相同的 V1-5 与 InternVL2，`template` 和各项尺寸都一样，提示词却不同。此时取其中一个并在日志中说明；用 `--chat-template 名称`（`ChatTemplateConfig`）可以指定另一个。""",
    undecided_columns=("权重", "默认采用", "另一个需要指定"),
    prompts="## 提示词",
    prompt_legend="""`«…»` 表示特殊 token，`«picture N»` 处是这张图片的各个切块，每块 256 个 `<IMG_CONTEXT>`。这些文本与 OpenGVLab 的 `conversation.py`（InternVL，2410d1d）逐字比对过；例外是 `internvl-internlm2`，它沿用 LMDeploy 对 V1-5 的写法，也是 V1-5 的默认。以 `-numbered` 结尾的模板按模型卡的写法给多张图片编号，需要时指定。""",
    of="用于",
    no_system="可选",
    conversations={"no picture": "无图", "one picture": "一张图", "two pictures": "两张图", "two turns": "两轮"},
    ids="id",
    tiles="## 切图",
    tile_legend="""以上权重的 `max_dynamic_patch` 都是 12，并带缩略图，所以切法相同。图片先用 Pillow 的双三次滤波缩放到网格大小，每个切块占 256 个 token。transformers 选出的网格相同，但它用 torchvision 缩放，有 0.5 % 的值与 Pillow 相差至多 2；权重是用 Pillow 训练的。""",
    tile_columns=("图片", "列 x 行", "切块数（含缩略图）", "token 数"),
    not_yet="## 尚不支持",
    not_yet_legend="读取权重之前就会报错，并指出名称。",
    not_yet_columns=("权重", "语言模型", "类"),
)
PAGES = {"docs/en/conformance.md": ENGLISH, "docs/zh/conformance.md": CHINESE}


def write_page(words: Words) -> str:
    """The whole page in one language."""
    sections = (
        words.intro,
        words.checkpoints,
        _write_table(words.checkpoint_columns, [_describe(release, words) for release in SERVED]),
        words.legend,
        words.undecided,
        _write_table(words.undecided_columns, _list_undecided()),
        words.prompts,
        words.prompt_legend,
        *(_write_profile(profile, words) for profile in PROFILES.values()),
        words.tiles,
        words.tile_legend,
        _write_table(words.tile_columns, [_cut(*size) for size in PICTURES]),
        words.not_yet,
        words.not_yet_legend,
        _write_table(words.not_yet_columns, [(r.name, r.language_model, f"`{r.architecture}`") for r in NOT_YET]),
    )
    return "\n\n".join(sections) + "\n"


def find_vocabulary(release: Release) -> str:
    """Whose vocabulary a checkpoint has."""
    return release.language_model.partition("-")[0].replace("InternLM2.5", _INTERNLM2)


def _describe(release: Release, words: Words) -> tuple[str, ...]:
    layouts = {architecture for architecture, decoder in SERVED_PAIRS if decoder == release.architecture}
    vocabulary = find_vocabulary(release)
    stops = (f"`{name}` {_find_ids(vocabulary)[name]}" for name in PROFILES[release.profile].stop_words)
    return (
        f"[{release.name}](https://huggingface.co/{release.hub_id})",
        release.language_model,
        words.both_layouts if len(layouts) > 1 else words.official,
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
    lines = [f"### `{profile.name}`", f"{words.of}: {', '.join(release.name for release in users) or words.no_system}."]
    lines += [_write_text(profile, name, words) for name in CONVERSATIONS]
    for vocabulary, ids in _find_golden_ids(profile.name).items():
        rows = [f"{words.conversations[name]}: {json.dumps(ids[name])}" for name in CONVERSATIONS]
        lines.append(f"{words.ids}, {vocabulary}:\n\n" + _fence("\n\n".join(rows)))
    return "\n\n".join(lines)


def _write_text(profile: PromptProfile, conversation: str, words: Words) -> str:
    special_names = frozenset(_find_ids("Qwen3")) | frozenset(_find_ids(_INTERNLM2))
    text = write_segments(render(profile, CONVERSATIONS[conversation], special_names))
    return f"{words.conversations[conversation]}:\n\n{_fence(text)}"


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
