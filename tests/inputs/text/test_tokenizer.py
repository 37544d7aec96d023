import io
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece

from tests.messages import mentions
from tilewise import demo
from tilewise.errors import CheckpointError, InputError
from tilewise.inputs.text.tokenizer import load_tokenizer

NAMES = (
    *("<unk>", "<s>", "</s>", "<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>"),
    *("<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>"),
    *("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(demo.model_folder())


@pytest.fixture
def folder(tmp_path):
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(demo.model_folder() / name, tmp_path)
    return tmp_path


def rewrite_table(folder: Path, change) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    change(config["added_tokens_decoder"])
    path.write_text(json.dumps(config))


def test_special_names_have_the_official_ids(shipped_data):
    tokenizer = load_tokenizer(shipped_data / "internvl-chat-v1-5")
    ids = [tokenizer.special_id(name) for name in NAMES]
    assert ids == [0, 1, 2, *range(92538, 92553)]
    assert (tokenizer.special_id("<s>"), tokenizer.vocab_size) == (1, 92553)
    assert tokenizer.special_ids == set(ids)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


def test_special_tokens_show_in_place_or_not_at_all(tokenizer):
    ref, end = tokenizer.special_id("<ref>"), tokenizer.special_id("</ref>")
    ids = [*tokenizer.encode("a "), ref, *tokenizer.encode("the cat"), end, *tokenizer.encode(" b")]
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a <ref>the cat</ref> b"
    assert tokenizer.decode(ids) == "a the cat b"


@pytest.mark.parametrize(
    "text", ["", " ", " a", "a  b\n\n", "\u2581x\u2581", "\x00", "Ａ——……", "🐈‍⬛", "\ufffd", "\r\n\t"]
)
def test_odd_text_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_outside_the_vocabulary_are_no_text(tokenizer):
    ids = tokenizer.encode("ab")
    assert tokenizer.decode([-1, *ids, tokenizer.vocab_size, 2**40]) == "ab"


def test_half_a_character_decodes_to_one_replacement(tokenizer):
    snowman = tokenizer.encode("☃")
    assert len(snowman) == 3
    assert tokenizer.decode(snowman[:2]) == "\ufffd"


def test_half_a_surrogate_pair_is_refused_with_its_place(tokenizer):
    with pytest.raises(InputError, match="character 2"):
        tokenizer.encode("ab\ud83d")


def test_lower_bound_never_exceeds_the_count(tokenizer):
    for text in ("", "a", "请描述图中内容" * 100, "the picture " * 1000, "\x00" * 50):
        assert tokenizer.count_at_least(text) <= len(tokenizer.encode(text))
    assert tokenizer.count_at_least("a" * 1_000_000) > 50_000


def test_unknown_special_name_is_refused_with_the_known_ones(tokenizer):
    with pytest.raises(CheckpointError, match=r"<\|nope\|>.*<\|im_end\|>"):
        tokenizer.special_id("<|nope|>")


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer_config.json"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("fields", "bos_id", "eos_id"),
    [
        ({}, 1, 2),
        ({"bos_token": None, "eos_token": None}, 1, 2),  # as the pieces say themselves
        ({"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"}, 2038, 2037),
        ({"add_bos_token": False}, None, 2),
    ],
)
def test_what_prompts_begin_and_texts_end_with_is_said_by_the_files(folder, fields, bos_id, eos_id):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (bos_id, eos_id)


def test_a_tokenizer_model_wins_over_a_conversion_beside_it(folder, tokenizer):
    (folder / "tokenizer.json").write_text("{}")
    assert load_tokenizer(folder).encode("图中内容") == tokenizer.encode("图中内容")


def test_a_token_that_is_not_special_is_shown_and_yet_out_of_reach_of_text(folder):
    def show(table):
        for token in table.values():
            token["special"] = token["content"] != "<ref>"

    rewrite_table(folder, show)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode([tokenizer.special_id("<ref>"), tokenizer.special_id("<box>")]) == "<ref>"
    assert tokenizer.special_id("<ref>") not in tokenizer.encode("<ref>")


@pytest.mark.parametrize(
    "table",
    [[], None, {"x": {"content": "<s>"}}, {"1": "<s>"}, {"1": {}}, {"-1": {"content": "<s>"}}, {"1": {"content": 7}}],
)
def test_malformed_table_is_refused(folder, table):
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": table}))
    with pytest.raises(CheckpointError, match="added_tokens_decoder"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["", " ", "\n\t"])
def test_an_added_token_that_is_no_more_than_white_space_is_refused_by_name(folder, name):
    rewrite_table(folder, lambda table: table["1"].update(content=name))
    with pytest.raises(CheckpointError, match=mentions(repr(name), "white space")):
        load_tokenizer(folder)


@pytest.mark.parametrize("key", ["5000", "999999999999"])
def test_special_id_beyond_a_gap_is_refused(folder, key):
    rewrite_table(folder, lambda table: table.update({key: {"content": "<extra>"}}))
    with pytest.raises(CheckpointError, match="without a gap"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x0a\xff\xff\xff\xff\x0f", bytes(1000)])
def test_broken_model_file_is_refused(folder, content):
    (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        load_tokenizer(folder)


@pytest.mark.parametrize("text", ["图中", "。", " the"])
def test_special_id_put_over_an_ordinary_piece_is_still_out_of_reach_of_text(folder, tokenizer, text):
    (taken,) = tokenizer.encode(text)
    rewrite_table(folder, lambda table: table.update({str(taken): {"content": "<extra>"}}))
    hostile = load_tokenizer(folder)
    ids = hostile.encode(text * 3)
    assert hostile.special_ids.isdisjoint(ids)
    assert hostile.decode(ids) == text * 3


def test_special_id_put_over_a_byte_is_refused(folder):
    rewrite_table(folder, lambda table: table.update({"70": {"content": "<extra>"}}))
    with pytest.raises(CheckpointError, match=mentions("tokenizer_config.json", "bytes")):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({}, None),
        ({"add_dummy_prefix": True}, "changes the text"),
        ({"remove_extra_whitespaces": True}, "changes the text"),
        ({"normalization_rule_name": "nmt_nfkc"}, "changes the text"),
        ({"byte_fallback": False}, "no byte fallback"),
    ],
)
def test_model_that_cannot_give_text_back_is_refused(folder, setting, match):
    options = {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "normalization_rule_name": "identity"}
    options |= {"byte_fallback": True, "vocab_size": 300, "model_type": "bpe", "hard_vocab_limit": False}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"a few words {number}" for number in range(50)]),
        model_writer=model,
        minloglevel=2,
        **(options | setting),
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    num_pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    ids = [0, 1, 2, *range(num_pieces, num_pieces + 15)]
    table = {str(i): {"content": name} for i, name in zip(ids, NAMES, strict=True)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": table}))
    if match is None:
        assert load_tokenizer(folder).vocab_size == num_pieces + 15
    else:
        with pytest.raises(CheckpointError, match=match):
            load_tokenizer(folder)
