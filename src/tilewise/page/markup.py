"""Texts of models and visitors as Markdown in which no HTML, picture, check box or diagram can begin.

`make_inert` puts a sign behind every character that could begin one. The sign stands in no other text: `restore`
removes each one, here from all that comes in, and in page.js from all that a browser shows or copies. The text is not
parsed, so nothing depends on what a Markdown parser takes for code or for a formula.
"""

import re

# A noncharacter, which Unicode reserves for a program's own use. After "<" every HTML parser reads text. KaTeX accepts
# it in formulas; it refuses the private-use characters U+E000 to U+F8FF.
SIGN = "\ufdd0"
_BEGINNING = re.compile(
    "<(?=[a-z/!?])"  # HTML, in whatever place
    r"|!(?=\[)"  # a picture
    r"|\[(?=[ x]\])"  # a check box
    # A diagram, which may bring styles and links of its own; JavaScript trims U+FEFF, too.
    r"|(?:```|~~~)(?:[^\S\n]|\ufeff)*(?=mermaid)",
    re.IGNORECASE,
)


def make_inert(text: str) -> str:
    """The text as the chat may render it; it reads as before."""
    return _BEGINNING.sub(lambda found: found[0] + SIGN, restore(text))


def restore(text: str) -> str:
    """The text without signs, as people wrote it and as the model gets it."""
    return text.replace(SIGN, "")
