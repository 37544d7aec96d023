import json

import pytest
from PIL import Image

from tilewise.config import ChatTemplateConfig, DecoderConfig, ModelConfig, VisionConfig
from tilewise.inputs.conversation import Message, parse_prompt
from tilewise.inputs.media.sources import ImagePolicy
from tilewise.inputs.request_builder import RequestBuilder
from tilewise.inputs.text.profile_choice import choose_profile
from tilewise.inputs.text.tokenizer import load_tokenizer
from tilewise.types import GenerationConfig, Request, TilingParameters

MODEL = ModelConfig(
    architecture="InternVLChatModel",
    vision=VisionConfig(hidden_size=3200, num_layers=45, num_heads=25, intermediate_size=12800),
    decoder=DecoderConfig("internlm2", 6144, 16384, 48, 48, 8, 128, vocab_size=92553, max_position_embeddings=32768),
    template="internlm2-chat",
)
IM_START, IM_END, IMG, IMG_END, CONTEXT = 92543, 92542, 92544, 92545, 92546


@pytest.fixture(scope="module")
def seed(shipped_data):
    return json.loads((shipped_data / "seed.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(shipped_data):
    return load_tokenizer(shipped_data / "internvl-chat-v1-5")


@pytest.fixture
def build(tokenizer):
    def build(prompt: object, profile: str | None = None, generation: GenerationConfig | None = None) -> Request:
        messages = prompt if isinstance(prompt, tuple) and isinstance(prompt[0], Message) else parse_prompt(prompt)
        chosen = choose_profile(MODEL, ChatTemplateConfig(profile))
        builder = RequestBuilder(MODEL, 32768, tokenizer, chosen, ImagePolicy(), TilingParameters())
        return builder.build(messages, generation or GenerationConfig(), "r")

    return build


def test_seed_request_is_1831_ids_to_the_id(seed, build):
    request = build((seed["prompt"], Image.new("RGB", tuple(seed["image_size"]))))
    before, after = seed["ids_before_image"], seed["ids_after_image"]
    assert list(request.token_ids) == before + [CONTEXT] * (seed["tiles"] * 256) + after
    assert len(request.token_ids) == seed["input_token_len"] == 1831
    assert len(before) + len(after) == 39
    assert [(span.start, span.end) for span in request.spans] == [(27, 27 + 7 * 256)]
    assert set(request.stop_token_ids) == {92542, 92540, 2}


def test_official_profile_takes_37_text_ids(seed, build):
    request = build((seed["prompt"], Image.new("RGB", (600, 400))), "internvl-official")
    newline = seed["ids_before_image"][22]
    text_ids = [i for i in request.token_ids if i != CONTEXT]
    expected = seed["ids_before_image"] + seed["ids_after_image"]
    assert len(text_ids) == 37
    assert text_ids == [i for at, i in enumerate(expected) if not (i == newline and expected[at - 1] == IM_END)]


def test_seed_answer_decodes_to_its_text_and_back(seed, tokenizer):
    assert tokenizer.decode(seed["answer_token_ids"]) == seed["answer_text"]
    assert tokenizer.encode(seed["answer_text"]) == seed["answer_token_ids"]


def test_system_block_and_bos_come_once_a_conversation(seed, build):
    turns = [
        {"role": "user", "content": seed["prompt"]},
        {"role": "assistant", "content": "猫"},
        {"role": "user", "content": "why"},
    ]
    ids = build(turns).token_ids
    assert ids.count(1) == 1
    assert ids.count(IM_START) == 5
    assert list(ids[:22]) == seed["ids_before_image"][:22]
    assert ids.count(9081) == 1


def test_pictures_of_a_pair_come_first_with_a_line_break_each(tokenizer, build):
    tile = Image.new("RGB", (448, 448))
    ids = [i for i in build(("q", [tile, tile])).token_ids if i != CONTEXT]
    at = ids.index(IMG)
    assert tokenizer.decode(ids[at:], skip_special_tokens=False).startswith("<img></img>\n<img></img>\nq<|im_end|>\n")


def test_numbered_profile_writes_the_official_form_of_several_pictures(tokenizer, build):
    tile = Image.new("RGB", (448, 448))
    text = tokenizer.decode(build(("q", [tile, tile]), "internvl-official-numbered").token_ids, False)
    context = "<IMG_CONTEXT>" * 256
    assert f"user\n<image 1> (图1):<img>{context}</img><image 2> (图2):<img>{context}</img>\nq<|im_end|>" in text
    assert "<image" not in tokenizer.decode(build(("q", tile), "internvl-official-numbered").token_ids, False)
