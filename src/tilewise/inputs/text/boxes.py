"""Grounded regions in an answer: `<ref>label</ref><box>[[x1, y1, x2, y2], ...]</box>`."""

import re

from tilewise.types import Box

_CORNERS = re.compile(r"\[\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*\]")
_MAX_COORDINATE = 1000


def parse_boxes(text: str) -> tuple[Box, ...]:
    """Read the boxes of an answer decoded with `skip_special_tokens=False`, in linear time.

    A region that is cut off, names no label, or has corners out of order or beyond 1000 is left out.
    """
    return tuple(box for region in text.split("<ref>")[1:] for box in _parse_region(region))


def _parse_region(region: str) -> list[Box]:
    label, _, rest = region.partition("</ref>")
    if not rest.startswith("<box>") or not label:
        return []
    corners, end, _ = rest.removeprefix("<box>").partition("</box>")
    if not end:
        return []
    boxes = [Box(label, *map(int, match.groups())) for match in _CORNERS.finditer(corners)]
    return [box for box in boxes if box.x1 <= box.x2 <= _MAX_COORDINATE and box.y1 <= box.y2 <= _MAX_COORDINATE]
