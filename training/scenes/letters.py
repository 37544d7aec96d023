"""What can be printed in a scene, and in which fonts.

The letters I and O are left out of codes: in some of the fonts nobody can tell them from 1, l and 0.
"""

import string
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

FOLDER = Path(__file__).parents[1] / "fonts"
# 500 common characters, of those that look alike only one.
COMMON = "".join((Path(__file__).parent / "characters.txt").read_text("utf-8").split())
CODE = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"
LATIN = string.ascii_letters + string.digits + string.punctuation + " "
# Names and headings of charts and tables need some more characters than are asked for.
_HEADINGS = (
    "苹果香蕉橙子葡萄梨桃草莓西瓜柠檬樱价格数量名称颜色北京上海广州深圳"
    "南京杭州一二三四五六七八月季度销售人口温度重量年龄甲乙丙丁"
)
CHINESE = "".join(dict.fromkeys(COMMON + _HEADINGS))

LATIN_FONTS = (
    "sans.ttf",
    "sans-bold.ttf",
    "serif.ttf",
    "serif-bold.ttf",
    "mono.ttf",
    "condensed.ttf",
    "microhei.ttf",
)
CHINESE_FONTS = ("droid.ttf", "microhei.ttf")
MIXED_FONT = "microhei.ttf"  # has both

WORDS = tuple((Path(__file__).parent / "words.txt").read_text("utf-8").split())


@lru_cache(maxsize=4096)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of `fonts/` at `size` pixels; kept, since opening one takes longer than drawing with it."""
    return ImageFont.truetype(str(FOLDER / name), size, layout_engine=ImageFont.Layout.BASIC)
