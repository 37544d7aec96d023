"""Prompt profiles as data, and a conversation laid out as segments of words, special tokens and pictures.

A profile is chosen by what the checkpoint's files say, or by the user, never by a folder's name. Where they fit two
releases whose prompts differ, the log says which was taken.
Special tokens come from the profile alone: what users and answers say stays text, whatever it looks like.
"""

import json
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from tilewise.catalogue import Release, find_candidates
from tilewise.config import ChatTemplateConfig, ModelConfig
from tilewise.errors import CheckpointError, ConfigError, InputError
from tilewise.files import read_file
from tilewise.inputs.conversation import ImagePart, Message, Part, ToolCall, check_turns
from tilewise.inputs.text.tool_syntax import internlm2

# What a template can mean as a special token only: of a turn, and of a picture's place.
_MARK, _IMAGE_MARK = re.compile(r"<\|\w+\|>"), re.compile(r"<[^<>\s]+>")
_MAX_FILE_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PromptProfile:
    """How turns are written. In each field but the first two, names of special tokens stand for the tokens.

    `meta_instruction` is the system sentence (empty: no system block); a system message takes its place.
    `system`, `user` and `assistant` open a turn and `turn_end` closes it. A picture stands between `image_start`
    and `image_end`, and `after_image` follows it; where `image_label` is set and there are several pictures, each
    is preceded by it with {n} counted from 1, `between_images` stands between those of a row, and `after_image`
    follows the last.
    `tools` and `tool` open the turns that describe tools and that hold a result, and a call stands between
    `call_start` and `call_end`; where `tools` is empty, the model knows none.
    `stop_words` end an answer.
    """

    name: str
    meta_instruction: str
    system: str = "<|im_start|>system\n"
    user: str = "<|im_start|>user\n"
    assistant: str = "<|im_start|>assistant\n"
    turn_end: str = "<|im_end|>\n"
    image_start: str = "<img>"
    image_end: str = "</img>"
    after_image: str = "\n"
    image_label: str = ""
    between_images: str = ""
    # Source: InternLM/InternLM chat/chat_format.md, "Function Call".
    tools: str = "<|im_start|>system name=<|plugin|>\n"
    tool: str = "<|im_start|>environment name=<|plugin|>\n"
    call_start: str = "<|action_start|><|plugin|>\n"
    call_end: str = "<|action_end|>"
    stop_words: tuple[str, ...] = ("<|im_end|>", "<|action_end|>", "</s>")


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

_INTERNLM2 = PromptProfile("internvl-internlm2", "You are an AI assistant whose name is InternLM (书生·浦语).")
_OFFICIAL = replace(_INTERNLM2, name="internvl-official", turn_end="<|im_end|>")
# From InternVL2 on an answer ends at the template's own separator alone, whatever config.json calls the end.
_STOP = ("<|im_end|>",)
_INTERNVL2 = replace(
    _OFFICIAL,
    name="internvl2-internlm2",
    meta_instruction="你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。",
    stop_words=_STOP,
)
# Of a base model that knows nothing of InternLM2's tools.
_HERMES_2 = replace(_INTERNVL2, name="internvl2-hermes-2", tools="", tool="", call_start="", call_end="")
# QUIRK: of all templates this one alone has a line break behind the end of a turn.
_INTERNVL2_5 = replace(
    _INTERNLM2,
    name="internvl2_5",
    meta_instruction="你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
    "多模态大语言模型。",
    stop_words=_STOP,
)


def _number_images(profile: PromptProfile) -> PromptProfile:
    """The form in which the model cards write several pictures: `Image-1: <image>`, one a line."""
    return replace(profile, name=f"{profile.name}-numbered", image_label="Image-{n}: ", between_images="\n")


# Source: OpenGVLab/InternVL, conversation.py at 2410d1d for the templates; at a08ba33 for V1-5's numbered pictures.
_ALL_PROFILES = (
    _INTERNLM2,
    _OFFICIAL,
    replace(_OFFICIAL, name="internvl-official-numbered", image_label="<image {n}> (图{n}):"),
    *(_INTERNVL2, _number_images(_INTERNVL2)),
    *(_HERMES_2, _number_images(_HERMES_2)),
    *(_INTERNVL2_5, _number_images(_INTERNVL2_5)),
)
PROFILES = {profile.name: profile for profile in _ALL_PROFILES}

# What a checkpoint of no known release takes. QUIRK: the official template of V1-5 lacks the line breaks of
# internvl-internlm2, but LMDeploy's users know the latter.
_DEFAULTS = {"internlm2-chat": _INTERNLM2, "Hermes-2": _HERMES_2, "internvl2_5": _INTERNVL2_5}
# What is taken where the files fit both; the first for the requests that V1-5's users know, the second is used more.
_UNDECIDED = {"InternLM2-20B": _INTERNLM2, "InternLM2-1.8B": _INTERNVL2}
# The Hugging Face layout names no template: what a checkpoint of no known release takes there, by its decoder.
_WITHOUT_TEMPLATE = {"qwen2": _INTERNVL2_5, "qwen3": _INTERNVL2_5}


def choose_profile(model: ModelConfig, chosen: ChatTemplateConfig | None = None) -> PromptProfile:
    """Take the user's profile or else the checkpoint's, with the user's changes.

    Raises:
        ConfigError: the name is unknown, the file malformed, or the checkpoint names no template known here.
    """
    chosen = chosen or ChatTemplateConfig()
    profile = _find_profile(model, chosen.model_name)
    if chosen.meta_instruction is not None:
        profile = replace(profile, meta_instruction=chosen.meta_instruction)
    if chosen.stop_words is not None:
        profile = replace(profile, stop_words=_read_words(chosen.stop_words))
    return profile


def _find_profile(model: ModelConfig, name: str | None) -> PromptProfile:
    if name is None:
        return _with_message(_choose_by_files(model), model)
    if name in PROFILES:
        return _with_message(PROFILES[name], model)
    if name.endswith(".json"):
        return load_profile(Path(name))
    text = f"Prompt profile {name!r} is unknown; choose {', '.join(PROFILES)}, or a .json file."
    raise ConfigError(text, param="chat_template_config")


def _with_message(profile: PromptProfile, model: ModelConfig) -> PromptProfile:
    """Put the checkpoint's own system sentence, where it has one, in the place of the template's."""
    return profile if model.system_message is None else replace(profile, meta_instruction=model.system_message)


def _choose_by_files(model: ModelConfig) -> PromptProfile:
    candidates = find_candidates(model)
    names = {release.profile for release in candidates}
    if len(names) > 1:
        return _choose_undecided(candidates)
    if names:
        profile = PROFILES[names.pop()]
    elif model.template is None and model.decoder.family in _WITHOUT_TEMPLATE:
        profile = _WITHOUT_TEMPLATE[model.decoder.family]
    elif model.template in _DEFAULTS:
        profile = _DEFAULTS[model.template]
    else:
        raise ConfigError(
            f"The checkpoint ({model.architecture}, template {model.template!r}) has no prompt profile here; "
            f"choose one with --chat-template NAME or FILE.json: {', '.join(PROFILES)}.",
            param="chat_template_config",
        )
    if model.template is None:
        logger.info(
            "The checkpoint names no template; by its language model (%s) the prompt profile %s is taken. Choose "
            "another with --chat-template (chat_template_config).",
            model.decoder.family,
            profile.name,
        )
    return profile


def _choose_undecided(candidates: Sequence[Release]) -> PromptProfile:
    profile = _UNDECIDED[candidates[0].language_model]
    logger.warning(
        "config.json fits %s, whose prompts differ: the prompt profile %s is taken. Name the right one with "
        "--chat-template (chat_template_config): %s.",
        " and ".join(release.name for release in candidates),
        profile.name,
        ", ".join(f"{release.profile} for {release.name}" for release in candidates),
    )
    return profile


def load_profile(path: Path) -> PromptProfile:
    """Read a profile from a JSON object: `base`, a known profile's name, and any field of `PromptProfile` to change.

    Without `base` the fields not given are those of `internvl-internlm2`.

    Raises:
        ConfigError: the file cannot be read or is no such object; the message names the key.
    """
    try:
        data: Any = json.loads(read_file(path, _MAX_FILE_BYTES))
    except OSError as error:
        raise ConfigError(
            f"Chat template {path} cannot be read: {error.strerror}; give --chat-template a JSON file as "
            '{"base": "internvl2_5", "meta_instruction": "Be brief."}.',
            param="chat_template_config",
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"Chat template {path} is not valid JSON: {error!s:.120}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"Chat template {path} must hold a JSON object.")
    values = cast(dict[str, Any], data)
    allowed = ("base", *(field.name for field in fields(PromptProfile)))
    for key, value in values.items():
        if key not in allowed:
            raise ConfigError(f"Chat template {path} has an unknown key {key!r:.80}; known: {', '.join(allowed)}.")
        if key != "stop_words" and not isinstance(value, str):
            raise ConfigError(f"Chat template {path}: {key} must be a string, got a {type(value).__name__}.")
    base = values.pop("base", _INTERNLM2.name)
    if base not in PROFILES:
        raise ConfigError(f"Chat template {path}: base {base!r:.80} is unknown; known: {', '.join(PROFILES)}.")
    if "stop_words" in values:
        values["stop_words"] = _read_words(values["stop_words"])
    return replace(PROFILES[base], **{"name": path.stem, **values})


def _read_words(words: object) -> tuple[str, ...]:
    given = cast(Sequence[object], words) if isinstance(words, (list, tuple)) else (None,)
    if not all(isinstance(word, str) and word for word in given):
        raise ConfigError("A chat template's stop_words must be a list of non-empty strings.", param="stop_words")
    return cast(tuple[str, ...], tuple(given))


def fit_profile(profile: PromptProfile, special_names: Collection[str]) -> PromptProfile:
    """Hold a profile to a tokenizer's special tokens; its syntax of tools is kept where they are all there.

    Raises:
        CheckpointError: what the turns and pictures of the profile need is missing; the message names it.
    """
    turns = "".join((profile.system, profile.user, profile.assistant, profile.turn_end, profile.after_image))
    needed = _MARK.findall(turns) + _IMAGE_MARK.findall(profile.image_start + profile.image_end)
    missing = [name for name in dict.fromkeys(needed) if name not in special_names]
    if missing:
        raise CheckpointError(
            f"The tokenizer lacks special tokens of the prompt profile {profile.name}: {', '.join(missing)}. Choose "
            "another with --chat-template, or take the tokenizer's files from the model's own repository."
        )
    tools = "".join((profile.tools, profile.tool, profile.call_start, profile.call_end))
    if profile.tools and not {*_MARK.findall(tools), *internlm2.SPECIAL_NAMES} <= set(special_names):
        return replace(profile, tools="", tool="", call_start="", call_end="")
    return profile


def render(profile: PromptProfile, messages: Sequence[Message], special_names: Collection[str]) -> tuple[Segment, ...]:
    """Lay a conversation out, ending with the assistant's opening; BOS is not part of it.

    Pictures are numbered in the order in which they appear. Neighbouring texts are one segment. Of the profile's
    templates, and of nothing else, `special_names` become special tokens.

    Raises:
        InputError: the turns are out of order, or of tools that the profile knows nothing of.
    """
    check_turns(messages)
    if not profile.tools and any(message.role in ("tools", "tool") or message.call_ids for message in messages):
        raise InputError(f"The prompt profile {profile.name} has no syntax for tools; leave them out.", param="tools")
    num_images = sum(len(message.images) for message in messages)
    layout = _Layout(profile, num_images, special_names)
    has_own_system = messages[0].role == "system"
    system_text = messages[0].text if has_own_system else profile.meta_instruction
    if system_text:
        layout.add_turn(profile.system, (system_text,))
    for message in messages[has_own_system:]:
        layout.add_turn(getattr(profile, message.role), message.parts)
    layout.add_template(profile.assistant)
    return layout.finish()


class _Layout:
    def __init__(self, profile: PromptProfile, num_images: int, special_names: Collection[str]) -> None:
        self._parts: list[Segment] = []
        # The longest first: one name may begin with another.
        names = sorted(special_names, key=len, reverse=True)
        self._special_names = re.compile("(" + ("|".join(map(re.escape, names)) or "(?!)") + ")")
        self._profile = profile
        self._label = profile.image_label if num_images > 1 else ""
        self._num_placed = 0

    def add_turn(self, opening: str, parts: Sequence[Part]) -> None:
        self.add_template(opening)
        previous: Part | None = None
        for number, part in enumerate(parts):
            if isinstance(part, str):
                self._parts.append("\n" + part if isinstance(previous, str) else part)
            elif isinstance(part, ToolCall):
                self.add_template(self._profile.call_start)
                self._parts.append(internlm2.write_call(part))
                self.add_template(self._profile.call_end)
            else:
                following = parts[number + 1] if number + 1 < len(parts) else None
                self._add_image(is_last_of_row=not isinstance(following, ImagePart))
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

    def _add_image(self, *, is_last_of_row: bool) -> None:
        # Not str.format: a template file must not reach into objects.
        self._parts.append(self._label.replace("{n}", str(self._num_placed + 1)))
        self.add_template(self._profile.image_start)
        self._parts.append(ImageSlot(self._num_placed))
        self.add_template(self._profile.image_end)
        is_followed = self._label and not is_last_of_row
        self.add_template(self._profile.between_images if is_followed else self._profile.after_image)
        self._num_placed += 1
