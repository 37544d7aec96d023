"""The READMEs open with what is served: the catalogue's releases, and no others."""

import re
from pathlib import Path

import pytest

from tilewise.catalogue import RELEASES

ROOT = Path(__file__).resolve().parents[2]
# A row's first cell, and the releases that it stands for.
VERSIONS = {"InternVL3.5": "3.5", "InternVL3": "3", "InternVL2.5": "2.5", "InternVL2": "2", "InternVL-Chat-V1-5": "1.5"}


def read_rows(text: str) -> dict[str, tuple[str, str]]:
    """What each release serves, and not yet, as the table's cells."""
    rows = re.findall(r"^\| (InternVL[\w.-]+)[^|]*\|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)
    return {VERSIONS[name]: (served.strip(), missing.strip()) for name, served, missing in rows}


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_a_readmes_table_is_the_catalogues(name: str) -> None:
    rows = read_rows((ROOT / name).read_text(encoding="utf-8"))
    assert rows.keys() == set(VERSIONS.values())
    for version, cells in rows.items():
        for is_served, cell in zip((True, False), cells, strict=True):
            releases = [release for release in RELEASES if (release.version, release.is_served) == (version, is_served)]
            # GPT-OSS-20B is what its readers call it.
            sizes = {"20B" if release.size == "20B-A4B" else release.size for release in releases}
            assert set(re.findall(r"(?<!-)\b(?:GPT-OSS-)?(\d+B(?:-A\d+B)?)", cell)) == sizes
