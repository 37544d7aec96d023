"""Bodies of requests, in the pieces in which they are parsed, against the parser that takes them whole."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewise.errors import ImageTooLargeError, PromptTooLongError
from tilewise.serving.http.body import MAX_DATA_URL_BYTES, MAX_JSON_DEPTH, MAX_TEXT_BYTES, PieceSizes, parse_json
from tilewise.serving.http.errors import RequestError

URL = "data:image/png;base64," + "A+/=" * 20_000
TEXT = 'He wrote {"url": "data:image/png;base64,AAAA"} \\ and "data:'
# Every data URL is long, and found across many strides.
SMALL = PieceSizes(long_url=6, stride=4)


def parse_whole(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return "invalid_json"


def parse_in_pieces(body: bytes) -> Any:
    try:
        return parse_json(body, SMALL)
    except RequestError as error:
        return error.code


def test_pictures_come_out_as_they_went_in_among_texts_that_look_like_some() -> None:
    value = {"a": [URL, TEXT, {"url": URL + "B"}], URL: TEXT * 2000}
    plain = json.dumps(value)
    for body in (plain, plain.replace("/", "\\/"), plain.replace("+", "\\u002B"), json.dumps(value, indent=1)):
        assert parse_json(bytearray(body.encode())) == value


texts = st.lists(st.sampled_from(("data:", "a" * 9, '"', "\\", "\n", "é", ",")), max_size=9).map("".join)
values = st.recursive(
    texts | st.none() | st.integers(0, 9), lambda inner: st.lists(inner) | st.dictionaries(texts, inner)
)
pieces = st.sampled_from(
    (b'"data:', b'"', b"\\", b"a" * 9, b"[", b"]", b",", b":", b"{", b"}", b"1", b"\n", b"\xff", b"u002b")
)


@given(values)
def test_json_is_read_as_by_the_parser_alone(value: Any) -> None:
    assert parse_in_pieces(orjson.dumps(value)) == value


@given(st.lists(pieces, max_size=16).map(b"".join))
def test_whatever_is_no_json_is_refused_as_by_the_parser_alone(body: bytes) -> None:
    assert parse_in_pieces(body) == parse_whole(body)


@pytest.mark.parametrize(
    "text", ["a" * MAX_TEXT_BYTES, '"data:' * (MAX_TEXT_BYTES // 7), " data:" + "A" * MAX_TEXT_BYTES]
)
def test_text_that_no_session_holds_is_refused_before_it_is_parsed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps([URL, text]).encode()
    monkeypatch.setattr(orjson, "loads", lambda part: URL if len(part) == len(URL) + 2 else pytest.fail("parsed"))
    with pytest.raises(PromptTooLongError, match=rf"{MAX_TEXT_BYTES}.* URLs.* base64"):
        parse_json(body)


def test_pictures_do_not_count_as_text_and_one_has_a_bound_of_its_own() -> None:
    many = [URL * 40] * 4
    assert len(json.dumps(many)) > MAX_TEXT_BYTES
    assert parse_json(json.dumps(many).encode()) == many
    with pytest.raises(ImageTooLargeError, match=f"{MAX_DATA_URL_BYTES} "):
        parse_json(json.dumps([URL * 500]).encode())


@pytest.mark.parametrize("inner", ["", "0", '""'])
def test_nesting_ends_at_its_bound_whatever_is_innermost(inner: str) -> None:
    def nest(levels: int) -> bytes:
        return ("[" * levels + inner + "]" * levels).encode()

    assert parse_in_pieces(nest(MAX_JSON_DEPTH)) != "too_deep"
    assert parse_in_pieces(nest(MAX_JSON_DEPTH + 1)) == "too_deep"
