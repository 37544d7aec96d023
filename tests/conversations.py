"""Four conversations that every prompt profile is held to, and how a prompt is written down."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from PIL import Image

from tilewise.inputs.conversation import ImagePart, Message
from tilewise.inputs.text.layout import ImageSlot, Segment, Special

# One tile each.
_PICTURE, _OTHER = (ImagePart(Image.new("RGB", (448, 448), colour)) for colour in ("red", "blue"))
CONVERSATIONS: dict[str, list[Message]] = {
    "no picture": [Message("user", ("What is a tile?",))],
    "one picture": [Message("user", (_PICTURE, "请描述图中内容"))],
    "two pictures": [Message("user", (_PICTURE, _OTHER, "What differs?"))],
    "two turns": [
        Message("user", (_PICTURE, "请描述图中内容")),
        Message("assistant", ("一只猫和一只狗。",)),
        Message("user", ("Where is the cat?",)),
    ],
}


def write_segments(segments: Iterable[Segment]) -> str:
    """A prompt as one string: «name» is a special token, «picture N» stands for a picture's tiles."""
    shown: list[str] = []
    for segment in segments:
        match segment:
            case Special(name):
                shown.append(f"«{name}»")
            case ImageSlot(number):
                shown.append(f"«picture {number + 1}»")
            case _:
                shown.append(segment)
    return "".join(shown)


def fold_pictures(token_ids: Sequence[int], context_id: int) -> list[int | str]:
    """Ids with "picture N" in the place of every picture's run of `context_id`."""
    folded: list[int | str] = []
    num_pictures = 0
    for token_id, run in groupby(token_ids):
        if token_id == context_id:
            num_pictures += 1
            folded.append(f"picture {num_pictures}")
        else:
            folded += run
    return folded
