"""Prompts to the character and to the id.

`prompts.json` was compared with what OpenGVLab's conversation.py (InternVL at 2410d1d) writes for the same
conversations, character by character, but for `internvl-internlm2`, which is LMDeploy's, and V1-5's numbered form.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conversations import CONVERSATIONS, fold_pictures, write_segments
from tests.golden.test_prompt import CONTEXT, MODEL
from tilewise.config import ChatTemplateConfig
from tilewise.inputs.media.sources import ImagePolicy
from tilewise.inputs.request_builder import RequestBuilder
from tilewise.inputs.text.profiles import PROFILES, choose_profile, render
from tilewise.inputs.text.tokenizer import load_tokenizer
from tilewise.types import GenerationConfig, TilingParameters

GOLDEN = Path(__file__).parent
TEXTS: dict[str, dict[str, str]] = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))
INTERNLM2_IDS: dict[str, Any] = json.loads((GOLDEN / "prompt_ids_internlm2.json").read_text(encoding="utf-8"))
CASES = [(profile, conversation) for profile in PROFILES for conversation in CONVERSATIONS]


@pytest.fixture(scope="module")
def internlm2(shipped_data):
    return load_tokenizer(shipped_data / "internvl-chat-v1-5")


def test_every_profile_has_its_goldens():
    assert TEXTS.keys() == PROFILES.keys()
    assert INTERNLM2_IDS.keys() == {name for name in PROFILES if "hermes" not in name}


@pytest.mark.parametrize(("profile", "conversation"), CASES)
def test_a_prompts_text_is_the_templates_to_the_character(profile, conversation):
    assert write_segments(render(PROFILES[profile], CONVERSATIONS[conversation])) == TEXTS[profile][conversation]


@pytest.mark.parametrize(("profile", "conversation"), [case for case in CASES if case[0] in INTERNLM2_IDS])
def test_a_prompts_ids_are_frozen_with_internlm2s_own_vocabulary(internlm2, profile, conversation):
    chosen = choose_profile(MODEL, ChatTemplateConfig(profile))
    builder = RequestBuilder(MODEL, 32768, internlm2, chosen, ImagePolicy(), TilingParameters())
    ids = builder.build(CONVERSATIONS[conversation], GenerationConfig(), "r").token_ids
    assert fold_pictures(ids, CONTEXT) == INTERNLM2_IDS[profile][conversation]
