"""The config.json of every served checkpoint of the family, and of those that are not served yet."""

import json
from pathlib import Path
from typing import Any

from tilewise.catalogue import RELEASES, Release

FOLDER = Path(__file__).parent / "data" / "family"
SERVED = [release for release in RELEASES if release.is_served]
NOT_YET = [release for release in RELEASES if not release.is_served]
# The Hugging Face layout of some.
HUGGING_FACE = ["InternVL3-1B-hf", "InternVL3-38B-hf", "InternVL3_5-8B-HF", "InternVL3_5-38B-HF"]


def find_folder(release: Release) -> Path:
    return FOLDER / release.name if release.is_served else FOLDER / "not-yet" / release.name


def name_release(release: Release) -> str:
    """What a parametrised test calls it."""
    return release.name


def write_changed(release: Release, folder: Path, changes: dict[str, Any]) -> Path:
    """Write the release's config.json with `changes` to its top level, `llm_config` merged in."""
    data = json.loads((find_folder(release) / "config.json").read_text())
    for key, value in changes.items():
        data[key] = data[key] | value if key == "llm_config" else value
    (folder / "config.json").write_text(json.dumps(data))
    return folder
