"""Cut the fonts that scenes are drawn with: `python -m training.make_fonts FOLDER…` (folders are searched for them).

The fonts are those of Debian's fonts-dejavu-core, fonts-dejavu-extra, fonts-droid-fallback and fonts-wqy-microhei.
What is kept of each is small enough to live in the repository; fonts/README.md has the licences. Needs fontTools.
"""

import argparse
from pathlib import Path

from training.scenes.letters import CHINESE, FOLDER, LATIN

# File to write -> (file to cut, whether it has Chinese).
SOURCES = {
    "sans.ttf": ("DejaVuSans.ttf", False),
    "sans-bold.ttf": ("DejaVuSans-Bold.ttf", False),
    "serif.ttf": ("DejaVuSerif.ttf", False),
    "serif-bold.ttf": ("DejaVuSerif-Bold.ttf", False),
    "mono.ttf": ("DejaVuSansMono.ttf", False),
    "condensed.ttf": ("DejaVuSansCondensed.ttf", False),
    "droid.ttf": ("DroidSansFallbackFull.ttf", True),
    "microhei.ttf": ("wqy-microhei.ttc", True),
}


def cut(source: Path, target: Path, characters: str) -> None:
    """Write the glyphs of `characters`, without hinting and layout tables."""
    from fontTools import subset

    options = subset.Options(hinting=False, layout_features=[], font_number=0, name_IDs=[0, 1, 2, 13, 14])
    with subset.load_font(str(source), options) as font:
        subsetter = subset.Subsetter(options)
        subsetter.populate(text=characters)
        subsetter.subset(font)
        subset.save_font(font, str(target), options)


def main() -> None:
    """Write every font of `SOURCES`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="where the fonts are, at any depth")
    found = {path.name: path for folder in parser.parse_args().folders for path in folder.rglob("*.tt[fc]")}
    missing = sorted({source for source, _ in SOURCES.values()} - found.keys())
    if missing:
        raise SystemExit(f"Not found: {', '.join(missing)}. Install the packages named in this script's docstring.")
    for name, (source, is_chinese) in SOURCES.items():
        cut(found[source], FOLDER / name, LATIN + (CHINESE if is_chinese else ""))


if __name__ == "__main__":
    main()
