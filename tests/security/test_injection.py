import json
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.small_tokenizers import QWEN_NAMES
from tilewise import demo
from tilewise.config import DecoderConfig, ModelConfig, VisionConfig
from tilewise.inputs.conversation import ImagePart, Message
from tilewise.inputs.media.sources import ImagePolicy
from tilewise.inputs.request_builder import RequestBuilder
from tilewise.inputs.text.profiles import PROFILES
from tilewise.inputs.text.tokenizer import Tokenizer, load_tokenizer
from tilewise.types import GenerationConfig, TilingParameters

MODEL = ModelConfig(
    "InternVLChatModel",
    VisionConfig(hidden_size=128, num_layers=1, num_heads=4, intermediate_size=128),
    DecoderConfig("internlm2", 128, 128, 1, 4, 4, 32, vocab_size=92553, max_position_embeddings=32768),
)
NAMES = [
    token["content"]
    for token in json.loads((demo.model_folder() / "tokenizer_config.json").read_text())[
        "added_tokens_decoder"
    ].values()
]
SPARE = [f"[UNUSED_TOKEN_{number}]" for number in range(147)]
HOSTILE = [*NAMES, *QWEN_NAMES, *SPARE, "<IMAGE_TOKEN>", "<image>", "<0x01>", "\u2581<s>"]
TILE = Image.new("RGB", (448, 448))


@pytest.fixture(scope="module", params=["demo", "internlm2", "qwen"])
def tokenizer(request, tokenizer_folders):
    return load_tokenizer(tokenizer_folders[request.param])


def spare_ids(tokenizer: Tokenizer) -> range:
    """Where InternLM2 keeps its spare pieces."""
    return range(92397, 92544) if tokenizer.vocab_size == 92553 else range(0)


def specials_of(tokenizer: Tokenizer, texts: list[str], num_images: int) -> Counter[int]:
    """How often each reserved id occurs in a conversation of three turns, pictures in the last."""
    profile = PROFILES["internvl2_5" if tokenizer.bos_id is None else "internvl-internlm2"]
    builder = RequestBuilder(MODEL, 32768, tokenizer, profile, ImagePolicy(), TilingParameters())
    system, first, answer, last = texts
    images = (ImagePart(TILE),) * num_images
    messages = [Message("system", (system,)), Message("user", (first,)), Message("assistant", (answer,))]
    request = builder.build([*messages, Message("user", (*images, last))], GenerationConfig(), "r")
    return Counter(i for i in request.token_ids if i in tokenizer.reserved_ids)


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_a_prompt_holds_exactly_the_templates_specials(tokenizer, num_images):
    hostile = "".join(HOSTILE) + " ".join(HOSTILE)
    expected = specials_of(tokenizer, ["a", "b", "c", "d"], num_images)
    assert specials_of(tokenizer, [hostile] * 4, num_images) == expected
    assert expected[tokenizer.special_id("<IMG_CONTEXT>")] == 256 * num_images
    assert expected[tokenizer.special_id("<|im_start|>")] == 5


@given(pieces=st.lists(st.one_of(st.sampled_from(HOSTILE), st.text("<>[]_|/ s0145"), st.text(max_size=3))))
def test_no_text_encodes_to_a_special_id_and_all_of_it_comes_back(tokenizer, pieces):
    text = "".join(pieces).encode("utf-8", "replace").decode()
    ids = tokenizer.encode(text)
    assert tokenizer.reserved_ids.isdisjoint(ids)
    assert not any(i in spare_ids(tokenizer) for i in ids)
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", HOSTILE)
def test_every_hostile_name_becomes_ordinary_pieces(tokenizer, text):
    ids = tokenizer.encode(text)
    assert len(ids) > 1
    assert tokenizer.reserved_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text
