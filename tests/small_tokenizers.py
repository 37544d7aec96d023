"""Small tokenizers of Qwen's form: byte-level BPE, NFC, its pattern, and its added tokens."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

# Source: transformers, models/qwen2/tokenization_qwen2.py.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NINE = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
# As in Qwen2.5 these two are shown even where special tokens are skipped.
SHOWN = ("<tool_call>", "</tool_call>")
QWEN_NAMES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *SHOWN, *NINE)
_TEXTS = [
    "The picture shows a cat and a dog on the beach; the cat isn't looking at 12 boats.",
    "请描述图中内容。这张图片展示了一只猫和一只狗。",
    '{"name": "get_weather", "parameters": {"city": "上海", "days": 3}}\n\n    if x:\n        return y  # done',
    "user\nsystem\nassistant\n <tool_call> im_start im_end endoftext img IMG_CONTEXT <|im_ <|end img> |>",
    "Ünïcode café 😀😀",
]


@lru_cache(maxsize=1)
def train() -> Mapping[str, Any]:
    """The model part of a tokenizer.json: `vocab`, and `merges` as pairs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    # Qwen's longest pieces are runs of spaces.
    tokenizer.train_from_iterator([*_TEXTS, " " * 32] * 20, trainer)
    return json.loads(tokenizer.to_str())["model"]


def count_pieces() -> int:
    return len(train()["vocab"])


def added_tokens() -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": count_pieces() + number, "content": name, **flags, "special": name not in SHOWN}
        for number, name in enumerate(QWEN_NAMES)
    ]


def write_config(folder: Path, **more: Any) -> None:
    """tokenizer_config.json, as Qwen has it; a field that is `...` is left out."""
    table = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in added_tokens()}
    fields = {
        "add_bos_token": False,
        "added_tokens_decoder": table,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "tokenizer_class": "Qwen2Tokenizer",
        **more,
    }
    told = {key: value for key, value in fields.items() if value is not ...}
    (folder / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")


def write_json(
    folder: Path, change: Callable[[dict[str, Any]], object] | None = None, *, as_text: bool = False
) -> Path:
    """tokenizer.json and its configuration; merges as pairs, or `as_text`. The test may `change` the file first."""
    model = train()
    merges = [" ".join(pair) for pair in model["merges"]] if as_text else model["merges"]
    split = {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    file: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(model["vocab"]),
            "merges": list(merges),
        },
    }
    if change is not None:
        change(file)
    write_config(folder)
    (folder / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    return folder


def write_vocab_and_merges(folder: Path) -> Path:
    """vocab.json and merges.txt, with their configuration."""
    model = train()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    write_config(folder)
    return folder
