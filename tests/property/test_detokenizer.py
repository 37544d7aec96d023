import unicodedata
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewise.inputs.text.detokenizer import Detokenizer
from tilewise.inputs.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module", params=["demo", "internlm2", "qwen"])
def tokenizer(request, tokenizer_folders):
    return load_tokenizer(tokenizer_folders[request.param])


@st.composite
def id_lists(draw, tokenizer: Tokenizer):
    token_bytes = [tokenizer.encode(text) for text in ("é", "猫", "😀", "aab", "abaab", " ")]
    specials = st.sampled_from(sorted(tokenizer.special_ids)).map(lambda i: [i])
    anything = st.integers(-2, tokenizer.vocab_size + 2).map(lambda i: [i])
    bytewise = st.integers(0, 258).map(lambda i: [i])
    return list(
        chain.from_iterable(draw(st.lists(st.one_of(st.sampled_from(token_bytes), specials, anything, bytewise))))
    )


def stream(detokenizer: Detokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    pushed = [detokenizer.push(ids[a:b]) for a, b in pairwise(edges)]
    return [*pushed, detokenizer.finish()]


@given(data=st.data(), cuts=st.lists(st.integers(0, 1000)), skip=st.booleans())
def test_any_chunking_joins_to_the_whole_decode(tokenizer, data, cuts, skip):
    ids = data.draw(id_lists(tokenizer))
    assert "".join(stream(Detokenizer(tokenizer, skip_special_tokens=skip), ids, cuts)) == tokenizer.decode(ids, skip)


@given(data=st.data(), cuts=st.lists(st.integers(0, 1000)))
def test_text_ends_before_the_stop_word_that_completes_first(tokenizer, data, cuts):
    ids = data.draw(id_lists(tokenizer))
    words = data.draw(st.lists(st.text("ab猫😀\ufffd ", min_size=1, max_size=4), max_size=4))
    text = tokenizer.decode(ids)
    ends = [(text.index(word) + len(word), text.index(word), word) for word in words if word in text]
    detokenizer = Detokenizer(tokenizer, stop_words=words)
    shown = "".join(stream(detokenizer, ids, cuts))
    if ends:
        _, start, word = min(ends)
        assert (shown, detokenizer.stop_word) == (text[:start], word)
    else:
        assert (shown, detokenizer.stop_word) == (text, None)


@given(data=st.data())
def test_no_more_is_held_back_than_a_stop_word_needs(tokenizer, data):
    text = data.draw(st.text("abc猫"))
    words = data.draw(st.lists(st.text("ab猫", min_size=1, max_size=4), max_size=3))
    detokenizer = Detokenizer(tokenizer, stop_words=words)
    shown = "".join(detokenizer.push([token_id]) for token_id in tokenizer.encode(text))
    if detokenizer.stop_word is None:
        held = text.removeprefix(shown)
        assert shown + held == text
        assert not held or any(word.startswith(held) for word in words)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_survives_encoding(tokenizer, text):
    decoded = tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True)
    assert unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", text)
    assert decoded == text or not unicodedata.is_normalized("NFC", text)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_shown_token_by_token_is_whole_characters_of_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    whole, shown, detokenizer = tokenizer.decode(ids), "", Detokenizer(tokenizer)
    for token_id in ids:
        shown += detokenizer.push([token_id])
        assert whole.startswith(shown)
    assert detokenizer.finish() == ""
    assert b"".join(tokenizer.token_bytes(token_id) for token_id in ids) == shown.encode()
