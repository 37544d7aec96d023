"""Which prompt profile a checkpoint gets, and what a user's own is read from.

A profile is chosen by what the checkpoint's files say, or by the user, never by a folder's name. Where they fit two
releases whose prompts differ, the log says which was taken.
"""

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from tilewise.catalogue import find_candidates
from tilewise.config import ChatTemplateConfig, ModelConfig
from tilewise.errors import CheckpointError, ConfigError
from tilewise.files import read_file
from tilewise.inputs.text.profiles import PROFILES, PromptProfile
from tilewise.inputs.text.tool_syntax import internlm2

# What a template can mean as a special token only: of a turn, and of a picture's place.
_MARK, _IMAGE_MARK = re.compile(r"<\|\w+\|>"), re.compile(r"<[^<>\s]+>")
_MAX_FILE_BYTES = 1 << 20
# What names special tokens in the built-in profiles' stops.
_BUILT_IN_STOPS = frozenset(word for profile in PROFILES.values() for word in profile.stop_words)
_TOOL_FIELDS = ("tools", "tool", "call_start", "call_end")

logger = logging.getLogger(__name__)

# What a checkpoint in sizes of no known release takes.
_DEFAULTS = {"Hermes-2": "internvl2-hermes-2", "internvl2_5": "internvl2_5"}
# Whose prompts internlm2-chat may be there. QUIRK: the official template of V1-5 lacks the line breaks of
# internvl-internlm2, but LMDeploy's users know the latter.
_INTERNLM2_CHAT = {"internvl-internlm2": "InternVL-Chat-V1-5", "internvl2-internlm2": "InternVL2"}
# What is taken where the files fit both: internvl-internlm2 for the requests that V1-5's users know, but of these
# sizes InternVL2 is used more.
_MORE_USED = {"InternLM2-1.8B": "internvl2-internlm2"}
# The Hugging Face layout names no template: what a checkpoint of no known release takes there, by its decoder.
_WITHOUT_TEMPLATE = {"qwen2": "internvl2_5", "qwen3": "internvl2_5"}


def choose_profile(model: ModelConfig, chosen: ChatTemplateConfig | None = None) -> PromptProfile:
    """Take the user's profile or else the checkpoint's, with the user's changes.

    Raises:
        ConfigError: the name is unknown, the file malformed, or the checkpoint names no template known here.
    """
    chosen = chosen or ChatTemplateConfig()
    profile = _find_profile(model, chosen.model_name)
    changes: dict[str, Any] = {}
    if chosen.meta_instruction is not None:
        changes["meta_instruction"] = chosen.meta_instruction
    if chosen.stop_words is not None:
        changes["stop_words"] = _read_stop_words(chosen.stop_words)
    return _change(profile, changes)


def _find_profile(model: ModelConfig, name: str | None) -> PromptProfile:
    if name is None:
        return _with_message(_choose_by_files(model), model)
    if name in PROFILES:
        return _with_message(PROFILES[name], model)
    if name.endswith(".json"):
        return _with_message(load_profile(Path(name), model), model)
    text = f"Prompt profile {name!r} is unknown; choose {', '.join(PROFILES)}, or a .json file."
    raise ConfigError(text, param="chat_template_config")


def _with_message(profile: PromptProfile, model: ModelConfig) -> PromptProfile:
    """Put the checkpoint's own system sentence, if it has one, in the place of the template's, not of the user's."""
    if model.system_message is None or "meta_instruction" in profile.user_fields:
        return profile
    return replace(profile, meta_instruction=model.system_message)


def _change(profile: PromptProfile, changes: Mapping[str, Any]) -> PromptProfile:
    """Put what the user sets into a profile, and note which fields that are."""
    return replace(profile, **changes, user_fields=profile.user_fields.union(changes))


def _choose_by_files(model: ModelConfig) -> PromptProfile:
    candidates = find_candidates(model)
    releases = {release.profile: release.name for release in candidates}
    if not releases and model.template == "internlm2-chat" and model.decoder.family == "internlm2":
        releases = _INTERNLM2_CHAT
    if len(releases) > 1:
        preferred = _MORE_USED.get(candidates[0].language_model) if candidates else None
        return _choose_undecided(model, releases, preferred or "internvl-internlm2")
    if releases:
        (name,) = releases
    elif model.template is None and model.decoder.family in _WITHOUT_TEMPLATE:
        name = _WITHOUT_TEMPLATE[model.decoder.family]
    elif model.template in _DEFAULTS:
        name = _DEFAULTS[model.template]
    else:
        raise ConfigError(
            f"The checkpoint ({model.architecture}, template {model.template!r}, language model "
            f"{model.decoder.family}) has no prompt profile here; choose one with --chat-template NAME, or with a "
            f"FILE.json whose base it is: {', '.join(PROFILES)}.",
            param="chat_template_config",
        )
    if model.template is None:
        logger.info(
            "The checkpoint names no template; by its language model (%s) the prompt profile %s is taken. Choose "
            "another with --chat-template (chat_template_config).",
            model.decoder.family,
            name,
        )
    return PROFILES[name]


def _choose_undecided(model: ModelConfig, releases: Mapping[str, str], preferred: str) -> PromptProfile:
    """Choose one of the profiles of `releases` by the checkpoint's own sentence, or the preferred one, and say that."""
    for name in releases:
        if PROFILES[name].meta_instruction == model.system_message:
            return PROFILES[name]
    logger.warning(
        "config.json fits %s, whose prompts differ: the prompt profile %s is taken. Name the right one with "
        "--chat-template (chat_template_config): %s.",
        " and ".join(releases.values()),
        preferred,
        ", ".join(f"{name} for {release}" for name, release in releases.items()),
    )
    return PROFILES[preferred]


def load_profile(path: Path, model: ModelConfig) -> PromptProfile:
    """Read a profile from a JSON object: `base`, a known profile's name, and any field of `PromptProfile` to change.

    Without `base` the fields not given are those of the checkpoint's own profile.

    Raises:
        ConfigError: the file cannot be read or is no such object, and the message names the key; or it has no `base`
            and the checkpoint no profile.
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
    allowed = ("base", *(field.name for field in fields(PromptProfile) if field.name != "user_fields"))
    for key, value in values.items():
        if key not in allowed:
            raise ConfigError(f"Chat template {path} has an unknown key {key!r:.80}; known: {', '.join(allowed)}.")
        if key != "stop_words" and not isinstance(value, str):
            raise ConfigError(f"Chat template {path}: {key} must be a string, got a {type(value).__name__}.")
    base = values.pop("base", None)
    if base is not None and base not in PROFILES:
        raise ConfigError(f"Chat template {path}: base {base!r:.80} is unknown; known: {', '.join(PROFILES)}.")
    if "stop_words" in values:
        values["stop_words"] = _read_stop_words(values["stop_words"])
    profile = _choose_by_files(model) if base is None else PROFILES[base]
    return _change(replace(profile, name=path.stem), values)


def _read_stop_words(words: object) -> tuple[str, ...]:
    given = cast(Sequence[object], words) if isinstance(words, (list, tuple)) else (None,)
    if not all(isinstance(word, str) and word for word in given):
        raise ConfigError("A chat template's stop_words must be a list of non-empty strings.", param="stop_words")
    return cast(tuple[str, ...], tuple(given))


def check_profile(profile: PromptProfile, special_names: Collection[str]) -> None:
    """Refuse a profile whose special tokens the tokenizer lacks; those of tools may be missing.

    Not looked at are `meta_instruction`, stop words, and, but around pictures, names without bars (`<s>`): text may
    look like them.

    Raises:
        CheckpointError: what the turns and pictures of the profile need is missing; the message names it.
    """
    turns = "".join((profile.system, profile.user, profile.assistant, profile.turn_end, profile.after_image))
    labels = profile.image_label + (profile.between_images or "")
    needed = _MARK.findall(turns + labels) + _IMAGE_MARK.findall(profile.image_start + profile.image_end)
    missing = [name for name in dict.fromkeys(needed) if name not in special_names]
    if missing:
        raise CheckpointError(
            f"The tokenizer lacks special tokens of the prompt profile {profile.name}: {', '.join(missing)}. Choose "
            "another with --chat-template, or take the tokenizer's files from the model's own repository."
        )


def fit_profile(profile: PromptProfile, special_names: Collection[str]) -> PromptProfile:
    """The profile without what the tokenizer lacks special tokens for: its syntax of tools, and built-in stop words.

    Raises:
        ConfigError: that syntax of tools is the user's own.
    """
    tools = "".join((profile.tools, profile.tool, profile.call_start, profile.call_end))
    lacking = {*_MARK.findall(tools), *internlm2.SPECIAL_NAMES}.difference(special_names)
    if profile.tools and lacking:
        own = [name for name in _TOOL_FIELDS if name in profile.user_fields]
        if own:
            raise ConfigError(
                f"The prompt profile {profile.name} sets {', '.join(own)}, but the tokenizer lacks special tokens of "
                f"its syntax of tools: {', '.join(sorted(lacking))}. Leave these fields out.",
                param="chat_template_config",
            )
        profile = replace(profile, **dict.fromkeys(_TOOL_FIELDS, ""))
    return _drop_lacking_stops(profile, special_names)


def _drop_lacking_stops(profile: PromptProfile, special_names: Collection[str]) -> PromptProfile:
    if "stop_words" in profile.user_fields:
        return profile
    lacking = _BUILT_IN_STOPS.difference(special_names)
    return replace(profile, stop_words=tuple(word for word in profile.stop_words if word not in lacking))
