"""Text of models and visitors, as Markdown in which no HTML, picture, form or diagram can begin.

`make_inert` sets a sign without width behind every character that could begin one; `restore` takes exactly these signs
away again, and the page's script does so in what a browser shows and copies. The text is not parsed: what a Markdown
parser takes for code or for a formula need not agree with another one's, and here nothing depends on it.
"""

import re

# WORD JOINER. After "<" it makes every HTML parser read text, and it is as valid in code and in formulas.
_SIGN = "\u2060"
# (what begins something, what has to follow for that); signs that the text has itself are looked through.
_BEGINNINGS = (
    ("<", f"[A-Za-z/!?{_SIGN}]"),  # HTML, in whatever place
    ("!", rf"{_SIGN}*\["),  # a picture
    (r"\[", rf"{_SIGN}*[ xX]\]"),  # a check box
    ("(?:```|~~~)[ \t]*", f"{_SIGN}*mermaid"),  # a diagram, which may bring styles and links of its own
)
_BARE = re.compile("|".join(f"{first}(?={then})" for first, then in _BEGINNINGS), re.IGNORECASE)
_SIGNED = re.compile("|".join(f"({first}){_SIGN}(?={then})" for first, then in _BEGINNINGS), re.IGNORECASE)


def make_inert(text: str) -> str:
    """The text as the chat may render it; it reads as before."""
    return _BARE.sub(lambda found: found[0] + _SIGN, text)


def restore(text: str) -> str:
    """The text that `make_inert` was given."""
    return _SIGNED.sub(lambda found: found[0][:-1], text)
