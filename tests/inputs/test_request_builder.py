import dataclasses

import pytest
from PIL import Image

from tests.messages import mentions
from tests.scripted import TokenizerDouble
from tilewise import demo
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.errors import (
    CheckpointError,
    ImageError,
    ImageFetchError,
    ImageTooLargeError,
    InputError,
    PromptTooLongError,
)
from tilewise.inputs.conversation import ImagePart, Message, parse_prompt
from tilewise.inputs.media.policy import ImageLimits, ImagePolicy
from tilewise.inputs.request_builder import RequestBuilder
from tilewise.inputs.text.profile_choice import choose_profile
from tilewise.inputs.text.tokenizer import load_tokenizer
from tilewise.types import GenerationConfig, TilingParameters

TILE = Image.new("RGB", (448, 448))
WIDE = Image.new("RGB", (600, 400))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(demo.model_folder())


@pytest.fixture
def create(tokenizer):
    def create(
        session_len: int = 8192, tiling: TilingParameters | None = None, limits: ImageLimits | None = None, **profile
    ) -> RequestBuilder:
        model = load_model_config(demo.model_folder())
        chosen = dataclasses.replace(choose_profile(model), **profile)
        policy = ImagePolicy(limits=limits or ImageLimits())
        return RequestBuilder(model, session_len, tokenizer, chosen, policy, tiling or TilingParameters())

    return create


def build(builder, prompt="q", **generation):
    return builder.build(parse_prompt(prompt), GenerationConfig(**generation), "r", "space")


def test_slots_are_filled_tiles_times_256_between_their_marks(create, tokenizer):
    request = build(create(), ("what", [WIDE, TILE]))
    img, end, context = map(tokenizer.special_id, ("<img>", "</img>", "<IMG_CONTEXT>"))
    assert [image.num_tiles for image in request.images] == [7, 1]
    assert [span.end - span.start for span in request.spans] == [7 * 256, 256]
    for span in request.spans:
        assert request.token_ids[span.start - 1] == img
        assert request.token_ids[span.end] == end
        assert set(request.token_ids[span.start : span.end]) == {context}
    assert request.token_ids.count(context) == 8 * 256
    assert request.token_ids[0] == tokenizer.special_id("<s>")
    assert request.token_ids.count(tokenizer.special_id("<s>")) == 1
    assert (request.request_id, request.namespace) == ("r", "space")


@pytest.mark.parametrize(
    ("part", "tiles"),
    [
        (ImagePart(WIDE), 3),
        (ImagePart(WIDE, detail="low"), 1),
        (ImagePart(WIDE, detail="high"), 7),
        (ImagePart(WIDE, max_dynamic_patch=6), 7),
        (ImagePart(WIDE, max_dynamic_patch=1), 1),
        (ImagePart(TILE, max_dynamic_patch=6, min_dynamic_patch=4), 5),
    ],
)
def test_tile_counts_follow_the_part_then_the_engine(create, part, tiles):
    builder = create(tiling=TilingParameters(min_tiles=2, max_tiles=2))
    request = builder.build([Message("user", (part, "q"))], GenerationConfig(), "r")
    assert request.images[0].num_tiles == tiles


@pytest.mark.parametrize("bad", [{"max_dynamic_patch": 0}, {"max_dynamic_patch": "6"}, {"min_dynamic_patch": 99}])
def test_tile_counts_outside_their_range_are_refused_by_name(create, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        create().build([Message("user", (ImagePart(TILE, **bad),))], GenerationConfig(), "r")


def test_prompt_may_fill_the_session_but_for_one_token(create):
    length = len(build(create(), ("q", TILE)).token_ids)
    assert len(build(create(length + 1), ("q", TILE)).token_ids) == length
    with pytest.raises(PromptTooLongError) as refused:
        build(create(length), ("q", TILE))
    knobs = ("--session-len", "max_dynamic_patch (--max-dynamic-patch)")
    for part in (str(length), f"{length - 256} of text", "1 tiles of 256", *knobs):
        assert part in str(refused.value)
    with pytest.raises(PromptTooLongError, match=r"\(--session-len\), or shorten"):
        build(create(1), "q")


def test_far_too_long_text_is_refused_before_it_is_tokenised(create, tokenizer):
    double = TokenizerDouble(tokenizer, encode=lambda *_: pytest.fail("tokenised"))
    builder = dataclasses.replace(create(1000), tokenizer=double)
    with pytest.raises(PromptTooLongError, match="--session-len"):
        build(builder, "a" * 20_000_000)


def test_far_too_many_pictures_are_refused_before_one_is_read(create):
    with pytest.raises(PromptTooLongError, match=mentions(16, "--session-len")):
        build(create(4096), ("q", ["missing.png"] * 16))
    with pytest.raises(InputError, match=mentions(17, 16)):
        build(create(), ("q", ["missing.png"] * 17))


def test_a_requests_pictures_share_a_budget_that_is_checked_before_the_next_is_read(create):
    assert ImageLimits().max_request_pixels == 2 * ImageLimits().max_pixels
    limits = ImageLimits(max_request_pixels=2 * 448 * 448)
    assert len(build(create(limits=limits), ("q", [TILE, TILE])).images) == 2
    with pytest.raises(ImageTooLargeError, match=mentions("Picture 3 of 4", 602112, 401408)):
        build(create(limits=limits), ("q", [TILE, TILE, TILE, "missing.png"]))


def test_an_error_says_which_of_several_pictures_it_is_about(create):
    with pytest.raises(ImageError, match=mentions("Picture 2 of 3", "missing.png")):
        build(create(), ("q", [TILE, "missing.png", "later.png"]))
    with pytest.raises(ImageFetchError, match=mentions("Picture 1 of 2", "URL")):
        build(create(), ("q", ["ftp://a/", TILE]))
    with pytest.raises(InputError, match=mentions("Picture 2 of 2", "max_dynamic_patch")) as refused:
        create().build([Message("user", (ImagePart(TILE), ImagePart(TILE, 0)))], GenerationConfig(), "r")
    assert refused.value.param == "max_dynamic_patch"
    with pytest.raises(ImageError, match=mentions("missing.png")) as alone:
        build(create(), ("q", "missing.png"))
    assert "Picture 1" not in str(alone.value)


def test_longer_answers_than_the_session_holds_are_left_to_the_engine(create):
    assert build(create(500), max_new_tokens=10_000).generation.max_new_tokens == 10_000


def test_stops_are_the_templates_and_the_callers(create, tokenizer):
    end, action, eos, box = map(tokenizer.special_id, ("<|im_end|>", "<|action_end|>", "</s>", "</box>"))
    assert set(build(create()).stop_token_ids) == {end, action, eos}
    asked = {"stop_token_ids": [5, 5], "stop_words": ["</box>", "stop"]}
    assert set(build(create(), **asked).stop_token_ids) == {end, action, eos, 5, box}
    assert set(build(create(), ignore_eos=True, **asked).stop_token_ids) == {5, box}
    assert build(create(), ignore_eos=True).stop_token_ids == ()


def test_stop_words_that_are_text_are_left_to_the_detokenizer(create, tokenizer):
    builder = create(stop_words=("<|im_end|>", "###"))
    for generation, shown in (
        (GenerationConfig(stop_words=("|",)), "1"),
        (GenerationConfig(), "1|2"),
        (GenerationConfig(ignore_eos=True), "1|2###3"),
    ):
        detokenizer = builder.create_detokenizer(generation)
        assert detokenizer.push(tokenizer.encode("1|2###3")) + detokenizer.finish() == shown


def test_bad_words_of_one_token_become_ids(create, tokenizer):
    box = tokenizer.special_id("<box>")
    (word,) = tokenizer.encode("图中")
    request = build(create(), bad_words=["图中", "<box>"], bad_token_ids=[7, word])
    assert request.generation.bad_token_ids == (7, word, box)


def test_bad_words_of_several_tokens_are_refused_by_name(create, tokenizer):
    num_tokens = len(tokenizer.encode("red zebra"))
    with pytest.raises(InputError, match=mentions("bad_words", "red zebra", num_tokens)):
        build(create(), bad_words=["red zebra"])


def test_a_ban_of_the_whole_vocabulary_is_refused(create, tokenizer):
    all_but_one = range(tokenizer.vocab_size - 1)
    assert len(build(create(), bad_token_ids=all_but_one).generation.bad_token_ids) == tokenizer.vocab_size - 1
    with pytest.raises(InputError, match=mentions("bad_words", "bad_token_ids", "min_new_tokens")):
        build(create(), bad_token_ids=[0, *all_but_one], bad_words=["</box>"])


@pytest.mark.parametrize("field", ["stop_token_ids", "bad_token_ids", "logit_bias"])
def test_ids_beyond_the_vocabulary_are_refused(create, tokenizer, field):
    beyond = tokenizer.vocab_size
    with pytest.raises(InputError, match=f"{field} holds {beyond}"):
        build(create(), **{field: [(beyond, 1.0)] if field == "logit_bias" else [beyond]})


def test_a_tokenizer_larger_than_the_model_is_refused(create):
    builder = create()
    decoder = dataclasses.replace(builder.model.decoder, vocab_size=100)
    with pytest.raises(CheckpointError, match="do not fit"):
        dataclasses.replace(builder, model=dataclasses.replace(builder.model, decoder=decoder))
