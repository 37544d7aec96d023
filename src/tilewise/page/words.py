"""The page's words, in English and Chinese."""

import json
from pathlib import Path

WORDS: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "words.json").read_text(encoding="utf-8"))


def in_both(key: str) -> tuple[str, str]:
    """One text in English and in Chinese."""
    return WORDS["en"][key], WORDS["zh-CN"][key]
