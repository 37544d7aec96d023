import dataclasses

import pytest
from PIL import Image

from tilewise import demo
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.errors import CheckpointError, InputError, PromptTooLongError
from tilewise.inputs.conversation import ImagePart, Message, parse_prompt
from tilewise.inputs.images import ImagePolicy
from tilewise.inputs.prompt import choose_profile
from tilewise.inputs.request import RequestBuilder
from tilewise.inputs.tokenizer import load_tokenizer
from tilewise.types import GenerationConfig, TilingParameters

TILE = Image.new("RGB", (448, 448))
WIDE = Image.new("RGB", (600, 400))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(demo.model_folder())


@pytest.fixture
def create(tokenizer):
    def create(session_len: int = 8192, tiling: TilingParameters | None = None, **profile) -> RequestBuilder:
        model = load_model_config(demo.model_folder())
        chosen = dataclasses.replace(choose_profile(model), **profile)
        return RequestBuilder(model, session_len, tokenizer, chosen, ImagePolicy(), tiling or TilingParameters())

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
    assert request.token_ids[0] == tokenizer.bos_id
    assert request.token_ids.count(tokenizer.bos_id) == 1
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
    for part in (str(length), f"{length - 256} of text", "1 tiles of 256", "--session-len", "max_dynamic_patch"):
        assert part in str(refused.value)


def test_far_too_long_text_is_refused_before_it_is_tokenised(create, tokenizer, monkeypatch):
    builder = create(1000)
    monkeypatch.setattr(type(tokenizer), "encode", lambda *_: pytest.fail("tokenised"))
    with pytest.raises(PromptTooLongError, match="at least"):
        build(builder, "a" * 20_000_000)


def test_far_too_many_pictures_are_refused_before_one_is_read(create):
    with pytest.raises(PromptTooLongError, match=r"at least .* 40 tiles"):
        build(create(), ("q", ["missing.png"] * 40))


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


def test_bad_words_of_several_tokens_are_refused_by_name(create):
    with pytest.raises(InputError, match=r"'red zebra', which is [0-9]+ tokens"):
        build(create(), bad_words=["red zebra"])


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
