from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tilewise import demo
from tilewise.config import DecoderConfig, ModelConfig, VisionConfig
from tilewise.inputs.conversation import ImagePart, Message
from tilewise.inputs.images import ImagePolicy
from tilewise.inputs.prompt import PROFILES
from tilewise.inputs.request import RequestBuilder
from tilewise.inputs.tokenizer import SPECIAL_NAMES, load_tokenizer
from tilewise.types import GenerationConfig, TilingParameters

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "internvl-chat-v1-5"
FOLDERS = [
    pytest.param(demo.model_folder(), id="demo"),
    pytest.param(
        SHARED,
        id="internlm2",
        marks=pytest.mark.skipif(not SHARED.is_dir(), reason="InternLM2's tokenizer is not at ../shared/data"),
    ),
]
MODEL = ModelConfig(
    "InternVLChatModel",
    VisionConfig(hidden_size=128, num_layers=1, num_heads=4, intermediate_size=128),
    DecoderConfig("internlm2", 128, 128, 1, 4, 4, 32, vocab_size=92553, max_position_embeddings=32768),
)
SPARE = [f"[UNUSED_TOKEN_{number}]" for number in range(147)]
HOSTILE = [*SPECIAL_NAMES, *SPARE, "<IMAGE_TOKEN>", "<image>", "<0x01>", "\u2581<s>"]
load = cache(load_tokenizer)
TILE = Image.new("RGB", (448, 448))


def specials_of(folder: Path, texts: list[str], num_images: int) -> Counter[int]:
    """How often each reserved id occurs in a conversation of three turns, pictures in the last."""
    tokenizer = load(folder)
    builder = RequestBuilder(MODEL, 32768, tokenizer, PROFILES["internvl-internlm2"], ImagePolicy(), TilingParameters())
    system, first, answer, last = texts
    images = (ImagePart(TILE),) * num_images
    messages = [Message("system", (system,)), Message("user", (first,)), Message("assistant", (answer,))]
    request = builder.build([*messages, Message("user", (*images, last))], GenerationConfig(), "r")
    spare = range(92397, 92544) if folder == SHARED else ()
    return Counter(i for i in request.token_ids if i in tokenizer.special_ids or i in spare)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_a_prompt_holds_exactly_the_templates_specials(folder, num_images):
    hostile = "".join(HOSTILE) + " ".join(HOSTILE)
    expected = specials_of(folder, ["a", "b", "c", "d"], num_images)
    assert specials_of(folder, [hostile] * 4, num_images) == expected
    tokenizer = load(folder)
    assert expected[tokenizer.special_id("<IMG_CONTEXT>")] == 256 * num_images
    assert expected[tokenizer.special_id("<|im_start|>")] == 5


@pytest.mark.parametrize("folder", FOLDERS)
@given(pieces=st.lists(st.one_of(st.sampled_from(HOSTILE), st.text("<>[]_|/ s0145"), st.text(max_size=3))))
@settings(deadline=None)
def test_no_text_encodes_to_a_special_id_and_all_of_it_comes_back(folder, pieces):
    text = "".join(pieces).encode("utf-8", "replace").decode()
    tokenizer = load(folder)
    ids = tokenizer.encode(text)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert folder != SHARED or not any(92397 <= i < 92544 for i in ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("text", HOSTILE)
def test_every_hostile_name_becomes_ordinary_pieces(folder, text):
    tokenizer = load(folder)
    ids = tokenizer.encode(text)
    assert len(ids) > 1
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text
