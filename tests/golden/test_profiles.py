"""Prompts to the character and to the id.

`prompts.json` was compared with what OpenGVLab's conversation.py (InternVL at 2410d1d) writes for the same
conversations, character by character, but for `internvl-internlm2`, which is LMDeploy's, and V1-5's numbered form.
The ids of `prompt_ids_internlm2.json` are SentencePiece's own of those texts, cut at special tokens; those of
`prompt_ids_qwen.json` are of a plain byte-level BPE over `qwen.tiktoken`, and of Qwen3's own tokenizer.json, alike.
"""

import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.conversations import CONVERSATIONS, fold_pictures, write_segments
from tests.golden.test_prompt import CONTEXT, MODEL
from tests.qwen_vocabulary import find_special_ids, write_cut
from tilewise.config import ChatTemplateConfig
from tilewise.inputs.media.sources import ImagePolicy
from tilewise.inputs.request_builder import RequestBuilder
from tilewise.inputs.text.layout import render
from tilewise.inputs.text.profile_choice import choose_profile
from tilewise.inputs.text.profiles import PROFILES
from tilewise.inputs.text.tokenizer import Tokenizer, load_tokenizer
from tilewise.types import GenerationConfig, Request, TilingParameters

GOLDEN = Path(__file__).parent
TEXTS: dict[str, dict[str, str]] = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))
INTERNLM2_IDS: dict[str, Any] = json.loads((GOLDEN / "prompt_ids_internlm2.json").read_text(encoding="utf-8"))
QWEN_IDS: dict[str, Any] = json.loads((GOLDEN / "prompt_ids_qwen.json").read_text(encoding="utf-8"))
SPECIAL_NAMES = frozenset(find_special_ids("Qwen3")) | {"<|plugin|>", "<|action_start|>", "<|action_end|>"}
CASES = [(profile, conversation) for profile in PROFILES for conversation in CONVERSATIONS]
QWEN_CASES = [(generation, *case) for generation, profiles in QWEN_IDS.items() for case in CASES if case[0] in profiles]


@pytest.fixture(scope="module")
def internlm2(shipped_data):
    return load_tokenizer(shipped_data / "internvl-chat-v1-5")


@lru_cache
def load_qwen(generation: str) -> tuple[Tokenizer, dict[int, int]]:
    with TemporaryDirectory() as folder:
        real_ids = write_cut(Path(folder), generation)
        return load_tokenizer(Path(folder)), real_ids


def build(tokenizer: Tokenizer, profile: str, conversation: str) -> Request:
    chosen = choose_profile(MODEL, ChatTemplateConfig(profile))
    builder = RequestBuilder(MODEL, 32768, tokenizer, chosen, ImagePolicy(), TilingParameters())
    return builder.build(CONVERSATIONS[conversation], GenerationConfig(), "r")


def test_every_profile_has_its_goldens():
    assert TEXTS.keys() == PROFILES.keys()
    assert INTERNLM2_IDS.keys() == {name for name in PROFILES if "hermes" not in name}
    assert {name for profiles in QWEN_IDS.values() for name in profiles} == {
        name for name in PROFILES if "hermes" in name or "2_5" in name
    }


@pytest.mark.parametrize(("profile", "conversation"), CASES)
def test_a_prompts_text_is_the_templates_to_the_character(profile, conversation):
    segments = render(PROFILES[profile], CONVERSATIONS[conversation], SPECIAL_NAMES)
    assert write_segments(segments) == TEXTS[profile][conversation]


@pytest.mark.parametrize(("profile", "conversation"), [case for case in CASES if case[0] in INTERNLM2_IDS])
def test_a_prompts_ids_are_frozen_with_internlm2s_own_vocabulary(internlm2, profile, conversation):
    ids = build(internlm2, profile, conversation).token_ids
    assert fold_pictures(ids, CONTEXT) == INTERNLM2_IDS[profile][conversation]


@pytest.mark.parametrize(("generation", "profile", "conversation"), QWEN_CASES)
def test_a_prompts_ids_are_frozen_with_qwens_own_vocabulary(generation, profile, conversation):
    tokenizer, real_ids = load_qwen(generation)
    ids = [real_ids[token_id] for token_id in build(tokenizer, profile, conversation).token_ids]
    context_id = find_special_ids(generation)["<IMG_CONTEXT>"]
    assert fold_pictures(ids, context_id) == QWEN_IDS[generation][profile][conversation]


@pytest.mark.parametrize("generation", QWEN_IDS)
def test_qwens_prompts_begin_without_bos_and_stop_at_the_end_of_a_turn_alone(generation):
    tokenizer, real_ids = load_qwen(generation)
    request = build(tokenizer, "internvl2_5", "no picture")
    assert real_ids[request.token_ids[0]] == find_special_ids(generation)["<|im_start|>"]
    assert [real_ids[token_id] for token_id in request.stop_token_ids] == [151645]


def test_the_added_tokens_have_the_familys_published_ids():
    published = {"Qwen2": (151646, 151648), "Qwen2.5": (151665, 151667), "Qwen3": (151669, 151671)}
    for generation, pair in published.items():
        special_ids = find_special_ids(generation)
        assert (special_ids["<img>"], special_ids["<IMG_CONTEXT>"]) == pair
