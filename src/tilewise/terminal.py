"""What may reach a terminal: an answer never its commands, whatever a picture talked the model into."""

UNPRINTABLE = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
