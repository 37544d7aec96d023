from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewise import demo
from tilewise.inputs.detokenizer import Detokenizer
from tilewise.inputs.tokenizer import Tokenizer, load_tokenizer

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "internvl-chat-v1-5"
FOLDERS = [
    pytest.param(demo.model_folder(), id="demo"),
    pytest.param(
        SHARED,
        id="internlm2",
        marks=pytest.mark.skipif(not SHARED.is_dir(), reason="InternLM2's tokenizer is not at ../shared/data"),
    ),
]
load = cache(load_tokenizer)


@st.composite
def id_lists(draw, tokenizer: Tokenizer):
    token_bytes = [tokenizer.encode(text) for text in ("é", "猫", "😀", "aab", "abaab", " ")]
    specials = st.sampled_from(sorted(tokenizer.special_ids)).map(lambda i: [i])
    anything = st.integers(-2, tokenizer.vocab_size + 2).map(lambda i: [i])
    bytewise = st.integers(3, 258).map(lambda i: [i])
    return sum(draw(st.lists(st.one_of(st.sampled_from(token_bytes), specials, anything, bytewise))), [])


def stream(detokenizer: Detokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    pushed = [detokenizer.push(ids[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    return [*pushed, detokenizer.finish()]


@pytest.mark.parametrize("folder", FOLDERS)
@given(data=st.data(), cuts=st.lists(st.integers(0, 1000)), skip=st.booleans())
@settings(deadline=None)
def test_any_chunking_joins_to_the_whole_decode(folder, data, cuts, skip):
    tokenizer = load(folder)
    ids = data.draw(id_lists(tokenizer))
    assert "".join(stream(Detokenizer(tokenizer, skip_special_tokens=skip), ids, cuts)) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("folder", FOLDERS)
@given(data=st.data(), cuts=st.lists(st.integers(0, 1000)))
@settings(deadline=None)
def test_text_ends_before_the_stop_word_that_completes_first(folder, data, cuts):
    tokenizer = load(folder)
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


@pytest.mark.parametrize("folder", FOLDERS)
@given(data=st.data())
@settings(deadline=None)
def test_no_more_is_held_back_than_a_stop_word_needs(folder, data):
    tokenizer = load(folder)
    text = data.draw(st.text("abc猫"))
    words = data.draw(st.lists(st.text("ab猫", min_size=1, max_size=4), max_size=3))
    detokenizer = Detokenizer(tokenizer, stop_words=words)
    shown = "".join(detokenizer.push([token_id]) for token_id in tokenizer.encode(text))
    if detokenizer.stop_word is None:
        held = text.removeprefix(shown)
        assert shown + held == text
        assert not held or any(word.startswith(held) for word in words)


@pytest.mark.parametrize("folder", FOLDERS)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None)
def test_every_text_survives_encoding(folder, text):
    tokenizer = load(folder)
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
