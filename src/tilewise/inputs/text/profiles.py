"""Prompt profiles as data: how each release of the family, and LMDeploy for V1-5, writes a conversation.

Knows no checkpoint (`profile_choice`) and no conversation (`layout`).
"""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class PromptProfile:
    """How turns are written. In each field but the first two, names of special tokens stand for the tokens.

    `meta_instruction` is the system sentence (empty: no system block); a system message takes its place.
    `system`, `user` and `assistant` open a turn and `turn_end` closes it. A picture stands between `image_start`
    and `image_end`, and `after_image` follows it; between neighbouring pictures stands `between_images` instead, unless
    it is None. Where a conversation has several pictures so far, `image_label` precedes each of a turn, with {n}
    counted from 1 through the conversation.
    `tools` and `tool` open the turns that describe tools and that hold a result, and a call stands between
    `call_start` and `call_end`; where `tools` is empty, or the tokenizer lacks these tokens, the model knows none.
    `stop_words` end an answer. `user_fields` names the fields that the user set: nothing changes these silently.
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
    between_images: str | None = None
    # Source: InternLM/InternLM chat/chat_format.md, "Function Call".
    tools: str = "<|im_start|>system name=<|plugin|>\n"
    tool: str = "<|im_start|>environment name=<|plugin|>\n"
    call_start: str = "<|action_start|><|plugin|>\n"
    call_end: str = "<|action_end|>"
    stop_words: tuple[str, ...] = ("<|im_end|>", "<|action_end|>", "</s>")
    user_fields: frozenset[str] = field(default=frozenset(), compare=False)


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
# Source: conversation.py there says that the two are one; what their tokenizers begin a prompt with is not.
_HERMES_2 = replace(_INTERNVL2, name="internvl2-hermes-2")
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
    return replace(profile, name=f"{profile.name}-numbered", image_label="Image-{n}: ")


# Source: OpenGVLab/InternVL, conversation.py at 2410d1d for the templates; at a08ba33 for V1-5's numbered pictures.
_ALL_PROFILES = (
    _INTERNLM2,
    _OFFICIAL,
    replace(_OFFICIAL, name="internvl-official-numbered", image_label="<image {n}> (图{n}):", between_images=""),
    *(_INTERNVL2, _number_images(_INTERNVL2)),
    *(_HERMES_2, _number_images(_HERMES_2)),
    *(_INTERNVL2_5, _number_images(_INTERNVL2_5)),
)
PROFILES = {profile.name: profile for profile in _ALL_PROFILES}
