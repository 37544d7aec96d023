import json
import math
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from tests.engine.tiny import make_picture
from tilewise.errors import InputError
from tilewise.types import GenerationConfig, ImageSpan, Request, Response, TilingParameters

HUGE = 2**31
REFUSED: dict[str, list[Any]] = {
    "n": [0, 17, 1.0, True, None],
    "max_new_tokens": [0, -1, HUGE, 1.5, None],
    "do_sample": [1, "yes", None],
    "top_p": [0.0, -0.1, 1.1, math.nan, 1e308, "1", None, True],
    "top_k": [-1, HUGE, 2.0, None],
    "min_p": [-0.1, 1.1, math.nan, None],
    "temperature": [-0.1, 101, math.inf, math.nan, "1"],
    "repetition_penalty": [0.0, -1.0, 11, math.nan],
    "presence_penalty": [-2.1, 2.1, math.nan, None],
    "frequency_penalty": [-2.1, 2.1, 1e308],
    "logit_bias": [5, "a", [1], [(1,)], [(1, 2.0, 3)], {1: 101}, {1: math.nan}, {-1: 1.0}, {"a": 1.0}, {1: "b"}],
    "ignore_eos": [1, None],
    "random_seed": [-1, 2**64, 1.5, True],
    "stop_words": [5, [""], [1], b"ab", ["a"] * 17],
    "bad_words": [5, [""], [None]],
    "stop_token_ids": [5, "12", [-1], [HUGE], [1.0], [True]],
    "bad_token_ids": [5, "12", [-1], [HUGE]],
    "min_new_tokens": [-1, 513, 1.5],
    "skip_special_tokens": [0, "no"],
    "logprobs": [-1, 21, True, 1.5],
    "response_format": [
        *(5, [], {}, "json_object", "[1]", "{", {"type": "json"}, {"type": ["regex"]}, {"type": "json_object", "x": 1}),
        *({"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "n"}}),
        {"type": "json_schema", "json_schema": {"schema": {}, "extra": 1}},
        {"type": "json_schema", "json_schema": {"schema": {"const": math.nan}}},
        {"type": "json_schema", "json_schema": {"schema": {"const": "\ud800"}}},
        {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70_000]}}},
        {"type": "json_schema", "json_schema": {"schema": {"const": {1, 2}}}},
        *({"type": "regex"}, {"type": "regex", "regex": ""}, {"type": "regex", "regex": ["a"]}),
        *({"type": "choice", "choice": []}, {"type": "choice", "choice": "ab"}, {"type": "choice", "choice": [""]}),
        {"type": "tool_calls", "tools": [], "is_required": True},
        "[" * 100_000,
    ],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_refused_value_names_its_field(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name) as refusal:
        GenerationConfig(**{name: value})
    assert refusal.value.param == name


@pytest.mark.parametrize("name", ["temperature", "top_k", "do_sample", "stop_words", "stop_token_ids", "logit_bias"])
def test_a_huge_value_is_refused_in_few_words(name: str) -> None:
    for value in ("x" * 1_000_000, ["x" * 1_000_000]):
        with pytest.raises(InputError) as refusal:
            GenerationConfig(**{name: value})
        assert len(str(refusal.value)) < 300


def test_every_generation_field_is_checked() -> None:
    assert {field.name for field in fields(GenerationConfig)} == set(REFUSED)


@pytest.mark.parametrize(
    ("given", "frozen"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, '{"type":"json_object"}'),
        ({"type": "choice", "choice": ("是", "no")}, '{"type":"choice","choice":["是","no"]}'),
        ({"type": "regex_schema", "regex_schema": "a+"}, '{"type":"regex","regex":"a+"}'),
        (
            {"json_schema": {"strict": True, "name": "n", "schema": {"b": 1, "a": {}}}, "type": "json_schema"},
            '{"type":"json_schema","json_schema":{"schema":{"b":1,"a":{}}}}',
        ),
    ],
)
def test_a_response_format_is_frozen_into_text_that_freezes_to_itself(given: object, frozen: str | None) -> None:
    config = GenerationConfig(response_format=given)  # type: ignore[arg-type]
    assert config.response_format == frozen
    assert replace(config).response_format == frozen
    if given is not None:
        assert GenerationConfig(response_format=json.dumps(given)).response_format == frozen


def test_the_defaults_are_lmdeploys() -> None:
    config = GenerationConfig()
    assert (config.n, config.max_new_tokens, config.do_sample) == (1, 512, False)
    assert (config.top_p, config.top_k, config.min_p, config.temperature) == (1.0, 50, 0.0, 0.8)
    assert (config.repetition_penalty, config.ignore_eos, config.random_seed) == (1.0, False, None)
    assert (config.skip_special_tokens, config.logprobs) == (True, None)


def test_lists_are_frozen_and_one_word_needs_no_list() -> None:
    config = GenerationConfig(
        stop_words="end", bad_words=["a", "b"], stop_token_ids=[1, 2], bad_token_ids=None, logit_bias={3: 1}
    )
    assert (config.stop_words, config.bad_words) == (("end",), ("a", "b"))
    assert (config.stop_token_ids, config.bad_token_ids) == ((1, 2), ())
    assert config.logit_bias == ((3, 1),)
    assert hash(config) == hash(GenerationConfig(**{name: getattr(config, name) for name in REFUSED}))
    with pytest.raises(FrozenInstanceError):
        config.n = 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("max_dynamic_patch", {"max_tiles": 0}),
        ("max_dynamic_patch", {"max_tiles": 65}),
        ("min_dynamic_patch", {"min_tiles": 0}),
        ("min_dynamic_patch", {"min_tiles": 5, "max_tiles": 4}),
        ("tile_size", {"tile_size": 0}),
    ],
)
def test_tiling_that_no_grid_satisfies_is_refused_by_the_users_name(name: str, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=name) as refusal:
        TilingParameters(**options)
    assert refusal.value.param == name


def test_tiles_of_a_picture_count_the_thumbnail() -> None:
    assert [make_picture(0, *grid).num_tiles for grid in ((1, 1), (2, 1), (4, 3))] == [1, 3, 13]


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 4, 1)],
        [(0, 0, 0)],
        [(4, 2, 0)],
        [(6, 11, 0)],
        [(-1, 4, 0)],
        [(0, 4, 0), (3, 8, 1)],
        [(4, 8, 0), (0, 4, 1)],
        [(0, 4, 0)],
    ],
)
def test_spans_that_do_not_lie_in_the_prompt_in_order_one_a_picture_are_refused(
    spans: list[tuple[int, int, int]],
) -> None:
    pictures = (make_picture(0), make_picture(1))
    with pytest.raises(InputError) as refusal:
        Request("r", (1,) * 10, tuple(ImageSpan(*span) for span in spans), pictures)
    assert refusal.value.param == "spans"


def test_spans_may_touch_each_other_and_both_ends() -> None:
    spans = (ImageSpan(0, 4, 0), ImageSpan(4, 8, 1))
    assert Request("r", (1,) * 8, spans, (make_picture(0), make_picture(1))).spans == spans


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        Request("r", ())


def test_pixels_stay_out_of_every_repr() -> None:
    request = Request("r", (1,) * 4, (ImageSpan(0, 4, 0),), (make_picture(0),))
    assert "pixels" not in repr(request) + repr(request.images[0])


def test_a_response_shows_lmdeploys_fields_and_no_other() -> None:
    response = Response("text", 3, 5, 0, "stop", [1, 2])
    assert repr(response) == (
        "Response(text='text', generate_token_len=3, input_token_len=5, session_id=0, finish_reason='stop', "
        "token_ids=[1, 2], logprobs=None)"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("token_ids", ids) for ids in ((1.5,), (1, "2"), (True,), (None,))),
        *(("stop_token_ids", ids) for ids in ((True,), (1.5,))),
        *(("namespace", text) for text in (None, 5)),
        ("request_id", 5),
        ("is_streamed", 1),
    ],
)
def test_a_request_of_other_types_than_its_fields_have_cannot_be_made(name: str, value: Any) -> None:
    fields = {"request_id": "r", "token_ids": (1,), name: value}
    with pytest.raises(InputError) as refused:
        Request(**fields)
    assert refused.value.param == name


def test_a_span_of_other_types_cannot_be_made() -> None:
    with pytest.raises(InputError) as refused:
        ImageSpan(0, 1.0, 0)  # type: ignore[arg-type]
    assert refused.value.param == "spans"
