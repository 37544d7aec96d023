"""A cut of Qwen's own vocabulary: every piece that the goldens' texts can hold, so that their ids are the real ones.

Byte-level BPE merges within words alone, and only to pieces that are parts of a word. With every such piece, and the
merges that make them, the cut yields what the whole vocabulary of 151,643 pieces does.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.small_tokenizers import NINE

_DATA: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "qwen" / "pieces.json").read_text("utf-8"))
_QWEN2 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN2_5 = (
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_SHOWN = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
_QWEN3 = ("<tool_response>", "</tool_response>", "<think>", "</think>")
# What the base tokenizers show even where special tokens are skipped.
SHOWN = frozenset((*_SHOWN, *_QWEN3))
NUM_PIECES = 151643
# The added tokens of each generation in the order of their ids, the family's nine behind the base tokenizer's.
ADDED = {
    "Qwen2": (*_QWEN2, *NINE),
    "Qwen2.5": (*_QWEN2, *_QWEN2_5, *_SHOWN, *NINE),
    "Qwen3": (*_QWEN2, *_QWEN2_5, *_SHOWN, *_QWEN3, *NINE),
}


def find_special_ids(generation: str) -> dict[str, int]:
    """The real ids of the added tokens."""
    return {name: NUM_PIECES + number for number, name in enumerate(ADDED[generation])}


def write_cut(folder: Path, generation: str, more: Sequence[str] = ()) -> dict[int, int]:
    """Write the tokenizer's files; give the real id of each id of the cut. The last added tokens may be `more`."""
    pieces: dict[str, int] = _DATA["pieces"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_DATA["merges"], ""]), encoding="utf-8")
    special_ids = find_special_ids(generation)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    table = {
        str(len(pieces) + number): {"content": name, **flags, "special": name not in SHOWN}
        for number, name in enumerate((*special_ids, *more))
    }
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": table,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return dict(enumerate([*pieces.values(), *special_ids.values()]))
