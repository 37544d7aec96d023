"""A conversation laid out by a profile: segments of text, special tokens and places of pictures.

Special tokens come from the profile alone: what users and answers say stays text, whatever it looks like.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

from tilewise.errors import InputError
from tilewise.inputs.conversation import ImagePart, Message, Part, ToolCall, check_turns
from tilewise.inputs.text.profiles import PromptProfile
from tilewise.inputs.text.tool_syntax import internlm2


@dataclass(frozen=True, slots=True)
class Special:
    """One special token, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """Where picture `number` of the conversation goes, counted from 0."""

    number: int


# Text stays text: it never becomes special tokens.
Segment = str | Special | ImageSlot


def render(profile: PromptProfile, messages: Sequence[Message], special_names: Collection[str]) -> tuple[Segment, ...]:
    """Lay a conversation out, ending with the assistant's opening; BOS is not part of it.

    Pictures are numbered in the order in which they appear. Labels are written in a turn where it and the turns before
    it have more than one picture: a later turn changes nothing of an earlier one, so that the prefix cache still hits.
    Neighbouring texts are one segment. Of the profile's templates, and of nothing else, `special_names` become special
    tokens.

    Raises:
        InputError: the turns are out of order, or of tools that the profile knows nothing of.
    """
    check_turns(messages)
    if not profile.tools and any(message.role in ("tools", "tool") or message.call_ids for message in messages):
        raise InputError(f"The prompt profile {profile.name} has no syntax for tools; leave them out.", param="tools")
    layout = _Layout(profile, special_names)
    has_own_system = messages[0].role == "system"
    system_text = messages[0].text if has_own_system else profile.meta_instruction
    if system_text:
        layout.add_turn(profile.system, (system_text,))
    for message in messages[has_own_system:]:
        layout.add_turn(getattr(profile, message.role), message.parts)
    layout.add_template(profile.assistant)
    return layout.finish()


class _Layout:
    def __init__(self, profile: PromptProfile, special_names: Collection[str]) -> None:
        self._parts: list[Segment] = []
        # The longest first: one name may begin with another.
        names = sorted(special_names, key=len, reverse=True)
        self._special_names = re.compile("(" + ("|".join(map(re.escape, names)) or "(?!)") + ")")
        self._profile = profile
        self._num_placed = 0

    def add_turn(self, opening: str, parts: Sequence[Part]) -> None:
        self.add_template(opening)
        num_images = self._num_placed + sum(isinstance(part, ImagePart) for part in parts)
        label = self._profile.image_label if num_images > 1 else ""
        previous: Part | None = None
        for number, part in enumerate(parts):
            if isinstance(part, str):
                self._parts.append("\n" + part if isinstance(previous, str) else part)
            elif isinstance(part, ToolCall):
                self.add_template(self._profile.call_start)
                self._parts.append(internlm2.write_call(part))
                self.add_template(self._profile.call_end)
            else:
                # A label begins a line of its own.
                if label and isinstance(previous, str):
                    self._parts.append("\n")
                following = parts[number + 1] if number + 1 < len(parts) else None
                self._add_image(label, is_last_of_row=not isinstance(following, ImagePart))
            previous = part
        self.add_template(self._profile.turn_end)

    def add_template(self, template: str) -> None:
        for number, piece in enumerate(self._special_names.split(template)):
            self._parts.append(Special(piece) if number % 2 else piece)

    def finish(self) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        for is_text, run in groupby(self._parts, key=lambda part: isinstance(part, str)):
            parts = list(run)
            segments += ["".join(cast(list[str], parts))] if is_text else parts
        return tuple(segment for segment in segments if segment != "")

    def _add_image(self, label: str, *, is_last_of_row: bool) -> None:
        # Not str.format: a template file must not reach into objects.
        self._parts.append(label.replace("{n}", str(self._num_placed + 1)))
        self.add_template(self._profile.image_start)
        self._parts.append(ImageSlot(self._num_placed))
        self.add_template(self._profile.image_end)
        between_images = self._profile.between_images
        if is_last_of_row or between_images is None:
            self.add_template(self._profile.after_image)
        else:
            self.add_template(between_images)
        self._num_placed += 1
