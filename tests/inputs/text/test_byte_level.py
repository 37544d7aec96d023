"""Byte-level BPE of Qwen's form, from any of its files: laws of ids and text, and refusals by name."""

import sys
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messages import mentions
from tests.real_qwen import write_release
from tests.small_tokenizers import (
    NINE,
    QWEN_NAMES,
    SHOWN,
    count_pieces,
    train,
    write_config,
    write_json,
    write_vocab_and_merges,
)
from tilewise.errors import CheckpointError, InputError
from tilewise.inputs.text.byte_level_files import load_json
from tilewise.inputs.text.tokenizer import Pieces, Tokenizer, load_tokenizer
from tilewise.inputs.text.tokenizer_config import load_tokenizer_config

TEXT = "The picture isn't of 12 猫; cafe\u0301 😀\r\n\n  <|im_start|>user <tool_call>"
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HOSTILE = st.one_of(st.sampled_from([*QWEN_NAMES, "<|im_", "start|>", "<", "|>"]), ANY_TEXT)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_json(tmp_path_factory.mktemp("qwen")))


def with_bos(**single: Any) -> dict[str, Any]:
    """A post-processor that puts a token before the text, as Llama-3's does."""
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [count_pieces()], "tokens": []}},
        **single,
    }
    return {"type": "Sequence", "processors": [{"type": "ByteLevel", "trim_offsets": False}, template]}


@given(text=ANY_TEXT)
def test_what_was_encoded_comes_back_up_to_nfc(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    assert unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", text)
    assert decoded == text or not unicodedata.is_normalized("NFC", text)
    assert b"".join(map(tokenizer.token_bytes, ids)) == decoded.encode()


@given(parts=st.lists(HOSTILE))
def test_no_text_becomes_an_added_token_of_either_kind(tokenizer: Tokenizer, parts: list[str]) -> None:
    for text in ("".join(parts), unicodedata.normalize("NFD", "".join(parts))):
        assert tokenizer.reserved_ids.isdisjoint(tokenizer.encode(text))
        assert tokenizer.reserved_ids == set(tokenizer.special_tokens.values())


@given(text=st.one_of(ANY_TEXT, st.text("a \u0301\u0313\u0345\u03b1\u1f82<|>"), st.text(" ", max_size=300)))
def test_lower_bound_never_exceeds_the_count(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.count_at_least(text) <= len(tokenizer.encode(text))


def test_lower_bound_is_met_where_a_piece_is_as_long_as_can_be(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.token_bytes(token_id) for token_id in range(count_pieces())]
    longest = max(sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces)
    assert tokenizer.count_at_least("a" * 10_000) == -(-10_000 // longest)
    # NFC makes one character of these four.
    assert tokenizer.encode("\u03b1\u0313\u0300\u0345") == tokenizer.encode("\u1f82")
    assert tokenizer.count_at_least("\u03b1\u0313\u0300\u0345" * 10_000) == -(-10_000 // longest)


def test_nfc_makes_one_character_of_four_at_most() -> None:
    characters = map(chr, (*range(0xD800), *range(0xE000, sys.maxunicode + 1)))
    assert max(len(unicodedata.normalize("NFD", character)) for character in characters) == 4


class RecordedPieces:
    """Pieces that keep the length of each text they encode."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.lengths: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pieces, name)

    def encode(self, text: str) -> list[int]:
        self.lengths.append(len(text))
        return self._pieces.encode(text)


def test_a_text_that_is_far_longer_is_read_no_further_than_that_takes(qwen_folder: Path) -> None:
    config = load_tokenizer_config(qwen_folder / "tokenizer_config.json")
    pieces = RecordedPieces(load_json(qwen_folder, config))
    tokenizer = Tokenizer(cast(Pieces, pieces))
    for text, num_tokens in (("1" * 1_000_000, 40_000), ("\u03b1\u0313" * 500_000, 40_000), ("1 " * 100_000, 10_000)):
        pieces.lengths.clear()
        assert tokenizer.count_at_least(text) <= num_tokens
        assert tokenizer.is_far_longer(text, num_tokens)
        assert pieces.lengths == [max(8 * num_tokens, 1 << 16)]
    pieces.lengths.clear()
    assert tokenizer.is_far_longer("1" * 10_000_000, 10_000)
    assert not tokenizer.is_far_longer("1" * 60_000, 10_000)
    assert pieces.lengths == []


@pytest.mark.parametrize(
    "part", ["1", "the picture shows a cat. ", " ", "a", "\u03b1\u0313\u0300\u0345", "\U0001f600", "\n\n  x", "x" * 999]
)
def test_a_text_is_not_far_longer_than_it_is(tokenizer: Tokenizer, part: str) -> None:
    text = part * (400_000 // len(part))
    count = len(tokenizer.encode(text))
    assert not tokenizer.is_far_longer(text, count)
    assert tokenizer.is_far_longer(text, count // 20)


def test_half_a_surrogate_pair_far_behind_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="character 100000"):
        tokenizer.is_far_longer("a" * 100_000 + "\ud83d", 10_000)


def test_shown_tokens_show_and_special_ones_do_not(tokenizer: Tokenizer) -> None:
    names = ("<|im_start|>", "<tool_call>", "<img>")
    ids = [tokenizer.special_id(name) for name in names]
    assert tokenizer.decode(ids) == "<tool_call>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "".join(names)
    assert tokenizer.special_ids == {tokenizer.special_id(name) for name in QWEN_NAMES if name not in SHOWN}


def test_half_a_surrogate_pair_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="character 2"):
        tokenizer.encode("ab\ud83d")


def test_a_text_on_which_the_pattern_gives_up_is_refused_and_the_next_one_is_not(tmp_path: Path) -> None:
    def put(file: dict[str, Any]) -> None:
        file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(x+x+)+y"}

    tokenizer = load_tokenizer(write_json(tmp_path, put))
    for _ in range(2):
        with pytest.raises(InputError, match="shorter"):
            tokenizer.encode("x" * 40 + "z")
        assert tokenizer.decode(tokenizer.encode("xxy z")) == "xxy z"


def test_an_error_that_is_no_panic_of_the_pattern_is_not_blamed_on_the_text(qwen_folder: Path) -> None:
    pieces = load_json(qwen_folder, load_tokenizer_config(qwen_folder / "tokenizer_config.json"))
    with pytest.raises(TypeError):
        pieces.encode(cast(str, 7))


def nest(file: dict[str, Any], depth: int) -> None:
    """Put steps into sequences of sequences, and the first step apart from the others."""
    first, *others = file["pre_tokenizer"]["pretokenizers"]
    inner = {"type": "Sequence", "pretokenizers": [first]}
    for _ in range(depth):
        inner = {"type": "Sequence", "pretokenizers": [inner]}
    file["pre_tokenizer"]["pretokenizers"] = [inner, *others]


@pytest.mark.parametrize("depth", [0, 1, 150])
def test_sequences_of_sequences_are_cut_in_their_order(tokenizer: Tokenizer, tmp_path: Path, depth: int) -> None:
    other = load_tokenizer(write_json(tmp_path, lambda file: nest(file, depth)))
    assert other.encode(TEXT) == tokenizer.encode(TEXT)


def test_all_forms_of_the_files_give_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("text", "old", "bare", "sequence")]
    for folder in folders:
        folder.mkdir()
    write_json(folders[0], as_text=True)
    write_vocab_and_merges(folders[1])
    write_json(folders[2])
    write_config(folders[2], added_tokens_decoder=...)  # as transformers 5 writes it
    write_json(folders[3], lambda file: file.update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]}))
    for folder in folders:
        other = load_tokenizer(folder)
        assert other.encode(TEXT) == tokenizer.encode(TEXT)
        assert (other.special_tokens, other.special_ids) == (tokenizer.special_tokens, tokenizer.special_ids)
        assert (other.bos_id, other.eos_id) == (None, tokenizer.special_id("<|im_end|>"))


def test_tokenizer_json_wins_over_the_older_files(tmp_path: Path) -> None:
    write_vocab_and_merges(tmp_path)
    write_json(tmp_path, lambda file: file["model"].update(merges=[]))
    assert len(load_tokenizer(tmp_path).encode("picture")) == 7


def test_tokens_that_only_the_configuration_adds_are_added(tmp_path: Path) -> None:
    write_json(tmp_path, lambda file: file.update(added_tokens=file["added_tokens"][: -len(NINE)]))
    assert set(NINE) <= set(load_tokenizer(tmp_path).special_tokens)


def test_a_prompt_begins_with_what_the_files_say(tmp_path: Path) -> None:
    write_json(tmp_path)
    assert load_tokenizer(tmp_path).bos_id is None
    write_config(tmp_path, bos_token={"content": "<|im_start|>"}, add_bos_token=True)
    assert load_tokenizer(tmp_path).bos_id is None  # Qwen2's class ignores both fields
    write_json(tmp_path, lambda file: file.update(post_processor=with_bos()))
    assert load_tokenizer(tmp_path).bos_id == count_pieces()


def test_without_a_normaliser_text_comes_back_as_it_was(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_json(tmp_path, lambda file: file.update(normalizer=None)))
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "e\u0301"


def test_text_is_cut_as_gpt2_does_where_the_file_says_so(tmp_path: Path, tokenizer: Tokenizer) -> None:
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    other = load_tokenizer(write_json(tmp_path, lambda file: file.update(pre_tokenizer=gpt2)))
    assert other.decode(other.encode(TEXT)) == unicodedata.normalize("NFC", TEXT)
    assert other.encode("a\n\n b") != [] != tokenizer.encode("a\n\n b")


def put_piece(file: dict[str, Any], name: str) -> int:
    """Have a piece, a new one in front of the added tokens where there is none; its id."""
    vocab = file["model"]["vocab"]
    token_id = vocab.setdefault(name, len(vocab))
    for number, token in enumerate(file["added_tokens"]):
        token["id"] = len(vocab) + number
    return token_id


@pytest.mark.parametrize("by_merges", [True, False])
def test_an_added_token_among_the_pieces_is_out_of_reach_of_text(tmp_path: Path, by_merges: bool) -> None:
    """Merges may lead to it, or a file that ignores merges may hold the whole word."""
    names = [name for name in train()["vocab"] if name.isascii() and name.isalpha()]
    name = max(names, key=len) if by_merges else "zebra"
    assert len(load_tokenizer(write_json(tmp_path)).encode(name)) == 1 or not by_merges

    def put(file: dict[str, Any]) -> None:
        file["model"]["ignore_merges"] = not by_merges
        file["added_tokens"].append({"id": put_piece(file, name), "content": name, "special": True})

    write_json(tmp_path, put)
    write_config(tmp_path, added_tokens_decoder=...)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode(name)
    assert tokenizer.special_id(name) < count_pieces() + 1
    assert tokenizer.reserved_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == name


@pytest.mark.parametrize("name", ["▁the", "a b", "a\xa0b", "上"])
def test_a_piece_that_is_no_bytes_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_json(tmp_path, lambda file: put_piece(file, name))
    write_config(tmp_path, added_tokens_decoder=...)
    with pytest.raises(CheckpointError, match=mentions(repr(name), "no sequence of bytes")):
        load_tokenizer(tmp_path)


REFUSED: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda file: file["model"].update(type="Unigram", vocab=[["a", 0.0]]), "Unigram"),
    (lambda file: file["model"].update(dropout=0.1), "dropout"),
    (lambda file: file["model"].update(continuing_subword_prefix="##"), "continuing_subword_prefix"),
    (lambda file: file["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    (lambda file: file["model"].update(merges=["a b c"]), "pairs"),
    (lambda file: file["model"].update(merges=[["q", "zz9"]]), "tokenizer.json is malformed"),
    (lambda file: file["model"].update(merges=[["a"]]), "malformed"),
    (lambda file: file["model"]["vocab"].update(zz=10**6), "without a gap"),
    (lambda file: file["model"]["vocab"].update(a=1, b=1), "without a gap"),
    (lambda file: file["model"].update(vocab={"a": 0}, merges=[]), "single bytes"),
    (lambda file: file.update(normalizer={"type": "NFKC"}), "normalizer 'NFKC'"),
    (lambda file: file.update(normalizer={"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}), "Lowercase"),
    (lambda file: file.update(pre_tokenizer=None), "pre_tokenizer None"),
    (lambda file: file.update(pre_tokenizer={"type": "Metaspace"}), "Metaspace"),
    (lambda file: file["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Whitespace"}), "Whitespace"),
    (lambda file: file["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "Removed"),
    (lambda file: file["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Glob": "*"}), "Glob"),
    (lambda file: file["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "("}), "malformed"),
    (lambda file: file["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "add_prefix_space"),
    (lambda file: file.update(decoder={"type": "Metaspace"}), "decoder 'Metaspace'"),
    (lambda file: file.update(post_processor={"type": "BertProcessing", "sep": ["s", 1], "cls": ["c", 2]}), "Bert"),
    (lambda file: file.update(post_processor=with_bos(special_tokens={})), "special_tokens"),
    (lambda file: file.update(post_processor=with_bos(single=[{"Sequence": {"id": "A"}}] * 2)), "single"),
    (
        lambda file: file.update(
            post_processor=with_bos(single=[{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<|endoftext|>"}}])
        ),
        "single",
    ),
    (lambda file: file["added_tokens"][1].update(lstrip=True), "strips the white space"),
    (lambda file: file["added_tokens"][1].update(content=""), "added token '' is empty or white space"),
    (lambda file: file["added_tokens"][1].update(content=" \n"), "is empty or white space"),
    (lambda file: file["added_tokens"][1].update(id=file["added_tokens"][2]["id"]), "distinct"),
    (lambda file: file["added_tokens"][1].update(content="<|other|>"), "disagree"),
    (lambda file: file["added_tokens"][0].update(id=0), "fit|disagree"),
    (lambda file: file.pop("model"), "model"),
    (lambda file: file["model"].update(vocab=7), "malformed"),
]


@pytest.mark.parametrize(("change", "match"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], match: str
) -> None:
    with pytest.raises(CheckpointError, match=match) as refusal:
        load_tokenizer(write_json(tmp_path, change))
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff", b"[]", b"[" * 100_000, b'{"model": ' * 50_000])
def test_a_broken_tokenizer_json_is_refused(tmp_path: Path, content: bytes) -> None:
    write_json(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write_vocab_and_merges(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_told_which_files_it_may_have(tmp_path: Path) -> None:
    write_config(tmp_path)
    with pytest.raises(
        CheckpointError, match=mentions("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt")
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"tokenizer_class": "GPT2Tokenizer"}, "GPT2Tokenizer.*tokenizer.json"),
        ({"add_prefix_space": True}, "add_prefix_space"),
        ({"add_eos_token": True}, "add_eos_token"),
        ({"eos_token": None}, "eos_token"),
        ({"eos_token": "<|other|>"}, r"eos_token '<\|other\|>'"),
        ({"eos_token": 7}, "eos_token"),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], match: str
) -> None:
    write_vocab_and_merges(tmp_path)
    write_config(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=match):
        load_tokenizer(tmp_path)


def test_many_threads_get_the_ids_that_one_gets(tokenizer: Tokenizer) -> None:
    texts = [f"{TEXT} {number} {'the cat ' * number}" for number in range(50)]
    expected = [tokenizer.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(tokenizer.encode, texts * 4)) == expected * 4


def test_other_threads_run_while_a_long_text_is_encoded(tokenizer: Tokenizer) -> None:
    turns = 0
    is_done = threading.Event()

    def encode() -> None:
        tokenizer.encode("hello world, " * 100_000)
        is_done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    while not is_done.wait(0.001):
        turns += 1
    thread.join()
    assert turns > 20, "holding the interpreter's lock would leave room for a handful"


@pytest.fixture(scope="module")
def real_qwen(real_qwen_folder: Path) -> Tokenizer:
    return load_tokenizer(write_release(real_qwen_folder, "Qwen2.5"))


@pytest.mark.parametrize(("release", "context_id"), [("Qwen2", 151648), ("Qwen2.5", 151667), ("Qwen3", 151671)])
def test_the_real_vocabulary_has_the_familys_ids(real_qwen_folder: Path, release: str, context_id: int) -> None:
    tokenizer = load_tokenizer(write_release(real_qwen_folder, release))
    assert tokenizer.special_id("<IMG_CONTEXT>") == context_id
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (None, 151645, context_id + 7)


def test_the_real_vocabulary_gives_qwens_ids(real_qwen: Tokenizer) -> None:
    """Ids that are widely known: of Qwen's own template, and of greetings."""
    assert real_qwen.special_id("<|endoftext|>") == 151643
    assert real_qwen.special_id("<|im_end|>") == 151645
    assert real_qwen.encode("system\n") == [8948, 198]
    assert real_qwen.encode("user\n") == [872, 198]
    assert real_qwen.encode("You are Qwen") == [2610, 525, 1207, 16948]
    assert real_qwen.encode("Hello, world!") == [9707, 11, 1879, 0]


@given(parts=st.lists(HOSTILE))
def test_the_real_vocabulary_keeps_the_laws(real_qwen: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids = real_qwen.encode(text)
    assert real_qwen.reserved_ids.isdisjoint(ids)
    assert unicodedata.normalize("NFC", real_qwen.decode(ids)) == unicodedata.normalize("NFC", text)
    assert real_qwen.count_at_least(text) <= len(ids)
