import pytest

from tilewise import demo
from tilewise.inputs.text.detokenizer import Detokenizer
from tilewise.inputs.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(demo.model_folder())


def push_each(detokenizer, ids):
    return [detokenizer.push([token_id]) for token_id in ids]


def test_a_character_comes_with_its_last_byte(tokenizer):
    ids = tokenizer.encode("🐈")
    assert len(ids) == 4
    assert push_each(Detokenizer(tokenizer), ids) == ["", "", "", "🐈"]


def test_half_a_character_at_the_end_becomes_one_replacement(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(tokenizer.encode("🐈")[:3]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_stop_word_across_pushes_ends_the_text_before_it(tokenizer):
    detokenizer = Detokenizer(tokenizer, stop_words=["cd"])
    assert push_each(detokenizer, tokenizer.encode("1c2cd3")) == ["1", "", "c2", "", "", ""]
    assert detokenizer.stop_word == "cd"
    assert detokenizer.finish() == ""


def test_the_word_complete_first_stops_even_where_a_longer_one_began_before(tokenizer):
    detokenizer = Detokenizer(tokenizer, stop_words=["xab9", "ab"])
    assert detokenizer.push(tokenizer.encode("1xab9")) == "1x"
    assert detokenizer.stop_word == "ab"


def test_of_words_complete_together_the_longest_counts(tokenizer):
    detokenizer = Detokenizer(tokenizer, stop_words=["b", "ab"])
    assert detokenizer.push(tokenizer.encode("1ab")) == "1"
    assert detokenizer.stop_word == "ab"


def test_held_text_comes_out_once_no_stop_word_can_follow(tokenizer):
    detokenizer = Detokenizer(tokenizer, stop_words=["END"])
    assert detokenizer.push(tokenizer.encode("EN")) == ""
    assert detokenizer.push(tokenizer.encode("E")) == "EN"
    assert detokenizer.finish() == "E"
    assert detokenizer.stop_word is None


def test_special_tokens_are_shown_on_request(tokenizer):
    ids = [tokenizer.special_id("<box>"), *tokenizer.encode("[1]")]
    assert "".join(push_each(Detokenizer(tokenizer, skip_special_tokens=False), ids)) == "<box>[1]"
    assert "".join(push_each(Detokenizer(tokenizer), ids)) == "[1]"
