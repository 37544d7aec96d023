"""What a test may ask of an error message: that it mentions what matters, in whatever words and order."""

import re


def mentions(*tokens: object) -> str:
    """A pattern for messages that hold each of these names, numbers and remedies as a word of its own."""
    return "(?s)" + "".join(rf"(?=.*(?<!\w){re.escape(str(token))}(?!\w))" for token in tokens)
