"""What the chat page shows beside the chat, as HTML and code: no web framework, no network, no state.

Whatever a user, a file's name or a model says is escaped. Words come in English and Chinese together, and the
page's style shows one of them, so that no text depends on who asked.
"""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from tilewise.inputs.media.tiling import choose_grid, has_thumbnail
from tilewise.inputs.text.boxes import parse_boxes
from tilewise.types import TilingParameters

_CELL = 112
BOXED_SIDE = 640
_MIDDLE = 500
_MARKS = re.compile(r"</?(?:ref|box)>")


def both(english: str, chinese: str) -> str:
    """HTML of one text in the two languages of the page."""
    return f'<span data-lang="en">{escape(english)}</span><span data-lang="zh">{escape(chinese)}</span>'


def show_head(model: str, notes: Sequence[tuple[str, str]]) -> str:
    """The page's first lines: its name, the model's, the languages, and what to know of this model."""
    lines = "".join(f'<div class="tw-note">{both(*note)}</div>' for note in notes)
    languages = '<nav><a href="?lang=en">English</a><a href="?lang=zh-CN">中文</a></nav>'
    return f'<div class="tw-head"><b>Tilewise</b><span>{escape(model)}</span>{languages}</div>{lines}'


def panel(*sections: str) -> str:
    """Sections of the panel beside the chat, one below the other."""
    return f'<div class="tw-panel">{"".join(sections)}</div>' if any(sections) else ""


def _section(title: str, content: str) -> str:
    return f"<section><h4>{title}</h4>{content}</section>"


def show_tiles(pictures: Iterable[Image.Image], tiling: TilingParameters, tokens_per_tile: int) -> str:
    """The pictures cut as the tower sees them, with what that costs; one after the other is taken."""
    return "".join(_show_picture(number, one, tiling, tokens_per_tile) for number, one in enumerate(pictures, 1))


def _show_picture(number: int, picture: Image.Image, tiling: TilingParameters, tokens_per_tile: int) -> str:
    columns, rows = grid = choose_grid(*picture.size, tiling)
    has_overview = has_thumbnail(*grid, tiling)
    shown = "".join(
        f'<div class="tw-grid" style="--columns:{across};--rows:{down}">'
        f"{_to_html(picture.resize((across * _CELL, down * _CELL), Image.Resampling.BICUBIC))}</div>"
        for across, down in (grid, (1, 1))[: 1 + has_overview]
    )
    tiles = columns * rows + has_overview
    cost = f"{tiles} × {tokens_per_tile} = {tiles * tokens_per_tile:,}"
    cut = f"{picture.width}×{picture.height} → {columns}×{rows}"
    more = (" + overview", " + 全图") if has_overview else ("", "")
    cost = both(f"{cut}{more[0]}: {cost} tokens", f"{cut}{more[1]}：{cost} 个词元")
    return _section(both(f"Picture {number}", f"图片 {number}"), f'<div class="tw-tiles">{shown}</div><p>{cost}</p>')


def show_boxes(picture: Image.Image | None, answer: str) -> str:
    """The picture with the answer's boxes on it; nothing where the answer has none."""
    boxes = parse_boxes(answer)
    if picture is None or not boxes:
        return ""
    small = picture.copy()
    small.thumbnail((BOXED_SIDE, BOXED_SIDE))
    drawn = "".join(
        f'<div class="tw-box" style="left:{box.x1 / 10}%;top:{box.y1 / 10}%;width:{(box.x2 - box.x1) / 10}%;'
        f'height:{(box.y2 - box.y1) / 10}%"><span style="{"left" if box.x1 < _MIDDLE else "right"}:-2px">'
        f"{escape(box.label)}</span></div>"
        for box in boxes
    )
    return _section(both("Boxes", "标注框"), f'<div class="tw-boxed">{_to_html(small)}{drawn}</div>')


def show_facts(first_s: float, after_s: float, usage: Mapping[str, Any], *, is_cut_off: bool) -> str:
    """How fast the answer came, what it took, and whether its length was the end of it.

    Units: seconds to the first text, and from there to the end; `usage` as the API counts.
    """
    details: dict[str, int] = usage.get("prompt_tokens_details") or {}
    num_new = usage.get("completion_tokens", 0)
    facts = (
        (("First token", "首个词元"), f"{first_s:.2f} s"),
        (("Speed", "速度"), f"{(num_new - 1) / after_s:.1f} tok/s" if num_new > 1 and after_s > 0 else "–"),
        (("Answer", "回答词元"), f"{num_new:,}"),
        (("Prompt", "提示词元"), f"{usage.get('prompt_tokens', 0):,}"),
        (("of pictures", "其中图片"), f"{details.get('image_tokens', 0):,}"),
        (("from cache", "其中缓存"), f"{details.get('cached_tokens', 0):,}"),
    )
    shown = "".join(f"<div><dt>{both(*name)}</dt><dd>{value}</dd></div>" for name, value in facts)
    cut = both("Cut off: the most new tokens were reached.", "已达到最多新词元数，回答被截断。") if is_cut_off else ""
    return _section(both("This answer", "本次回答"), f'<dl class="tw-facts">{shown}</dl><p>{cut}</p>')


def without_marks(answer: str) -> str:
    """An answer as people read it: labels and coordinates stay, the marks around them go."""
    return _MARKS.sub("", answer.replace("<box>", " <box>"))


def _to_html(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="" width="{picture.width}" height="{picture.height}" src="data:image/jpeg;base64,{data}">'
