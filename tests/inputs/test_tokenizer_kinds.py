"""What the request builder does over each kind of tokenizer: beginnings, stops, names that must be there."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from tests.messages import mentions
from tests.scripted import TokenizerDouble
from tests.small_tokenizers import write_config, write_json
from tilewise import demo
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import ChatTemplateConfig, ModelConfig
from tilewise.errors import CheckpointError, InputError, PromptTooLongError
from tilewise.inputs.conversation import ImagePart, Message, parse_prompt
from tilewise.inputs.request_builder import RequestBuilder, create_builder
from tilewise.inputs.text.grammar import create_guide
from tilewise.inputs.text.profiles import PROFILES
from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.types import GenerationConfig

TOOLS = Message("tools", ("[]",))


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    return load_model_config(demo.model_folder())


@pytest.fixture
def builder(model: ModelConfig, qwen_folder: Path) -> RequestBuilder:
    return create_builder(qwen_folder, model, ChatTemplateConfig("internvl2_5", "Be brief."))


def drop(folder: Path, *names: str) -> None:
    """Take added tokens out of a Qwen folder; those behind them move up."""

    def change(file: dict[str, Any]) -> None:
        first = file["added_tokens"][0]["id"]
        left = [token for token in file["added_tokens"] if token["content"] not in names]
        file["added_tokens"] = [{**token, "id": first + number} for number, token in enumerate(left)]

    write_json(folder, change)
    write_config(folder, added_tokens_decoder=...)


def test_qwens_prompt_begins_with_the_template_and_holds_its_tokens(builder: RequestBuilder) -> None:
    tokenizer = builder.tokenizer
    tile = ImagePart(Image.new("RGB", (448, 448)))
    request = builder.build([Message("user", (tile, "what <img>?"))], GenerationConfig(), "r")
    im_start, im_end, img, img_end, context = map(
        tokenizer.special_id, ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
    )
    encode = tokenizer.encode
    assert list(request.token_ids) == [
        *(im_start, *encode("system\nBe brief."), im_end, *encode("\n")),
        *(im_start, *encode("user\n"), img, *[context] * 256, img_end, *encode("\nwhat <img>?"), im_end, *encode("\n")),
        *(im_start, *encode("assistant\n")),
    ]


def test_the_prompts_length_counts_a_beginning_only_where_there_is_one(
    model: ModelConfig, tokenizer_folders: Mapping[str, Path]
) -> None:
    for kind, profile, num_bos in (("demo", "internvl-internlm2", 1), ("qwen", "internvl2_5", 0)):
        built = create_builder(tokenizer_folders[kind], model, ChatTemplateConfig(profile))
        ids = built.build(parse_prompt("q"), GenerationConfig(), "r").token_ids
        assert ids.index(built.tokenizer.special_id("<|im_start|>")) == num_bos
        exact = replace(built, session_len=len(ids) + 1)
        assert exact.build(parse_prompt("q"), GenerationConfig(), "r").token_ids == ids
        with pytest.raises(InputError, match=f"{len(ids)} tokens"):
            replace(built, session_len=len(ids)).build(parse_prompt("q"), GenerationConfig(), "r")


def test_a_stop_word_that_is_shown_ends_the_text_whichever_way_it_is_written(builder: RequestBuilder) -> None:
    tokenizer = builder.tokenizer
    wish = GenerationConfig(stop_words=("<tool_call>", "<img>"))
    stops = builder.build(parse_prompt("q"), wish, "r").stop_token_ids
    assert tokenizer.special_id("<img>") in stops
    assert tokenizer.special_id("<tool_call>") not in stops
    for ids in ([tokenizer.special_id("<tool_call>")], tokenizer.encode("<tool_call>")):
        detokenizer = builder.create_detokenizer(wish)
        assert detokenizer.push([*tokenizer.encode("a"), *ids, *tokenizer.encode("b")]) == "a"
        assert detokenizer.stop_word == "<tool_call>"


class Recorded(TokenizerDouble):
    """Keeps the length of each text that is encoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.lengths: list[int] = []

    def encode(self, text: str) -> list[int]:
        self.lengths.append(len(text))
        return self._tokenizer.encode(text)


def test_what_may_fit_by_its_length_is_tokenised_no_further_than_to_twice_a_session(builder: RequestBuilder) -> None:
    recorded = Recorded(builder.tokenizer)
    double = replace(builder, tokenizer=cast(Tokenizer, recorded))
    for texts in (["1 " * 40_000], ["1 " * 500] * 81):
        recorded.lengths.clear()
        assert builder.tokenizer.count_at_least("".join(texts)) < builder.session_len == 8192
        messages = [Message("user" if at % 2 == 0 else "assistant", (text,)) for at, text in enumerate(texts)]
        with pytest.raises(PromptTooLongError, match=mentions("at least", "--session-len")):
            double.build(messages, GenerationConfig(), "r")
        assert sum(recorded.lengths) < 2.5 * 8192


def test_the_profiles_stops_are_tokens_even_where_the_tokenizer_shows_them(builder: RequestBuilder) -> None:
    tokenizer = builder.tokenizer
    builder = replace(builder, profile=replace(builder.profile, stop_words=("</tool_call>", "<|im_end|>")))
    stops = builder.build(parse_prompt("q"), GenerationConfig(), "r").stop_token_ids
    assert stops == tuple(map(tokenizer.special_id, ("</tool_call>", "<|im_end|>")))
    detokenizer = builder.create_detokenizer(GenerationConfig())
    assert detokenizer.push(tokenizer.encode("a</tool_call>b")) == "a"


@pytest.mark.parametrize("stop_words", [(), ("###",), ("</tool_call>",)])
def test_a_form_can_always_end(builder: RequestBuilder, stop_words: tuple[str, ...]) -> None:
    tokenizer = builder.tokenizer
    builder = replace(builder, profile=replace(builder.profile, stop_words=stop_words))
    form = json.dumps({"type": "choice", "choice": ["a"]})
    stops = builder.build(parse_prompt("q"), GenerationConfig(response_format=form), "r").stop_token_ids
    guide = create_guide(form, tokenizer)
    for token_id in tokenizer.encode("a"):
        guide.consume(token_id)
    mask = np.zeros(-(-tokenizer.vocab_size // 8), dtype=np.uint8)
    guide.fill(mask, stops, (), is_short=False)
    assert tuple(np.flatnonzero(np.unpackbits(mask, bitorder="little"))) == stops
    assert bool(builder.build(parse_prompt("q"), GenerationConfig(), "r").stop_token_ids) == ("<" in str(stop_words))


def test_bad_words_are_banned_by_either_kind_of_added_token(builder: RequestBuilder) -> None:
    wish = GenerationConfig(bad_words=("<tool_call>", "<img>"))
    banned = builder.build(parse_prompt("q"), wish, "r").generation.bad_token_ids
    assert banned == tuple(map(builder.tokenizer.special_id, wish.bad_words))


@pytest.mark.parametrize("name", ["<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>"])
def test_a_special_token_that_the_prompt_needs_is_missed_by_name(model: ModelConfig, tmp_path: Path, name: str) -> None:
    drop(tmp_path, name)
    with pytest.raises(CheckpointError, match=mentions(name)):
        create_builder(tmp_path, model, ChatTemplateConfig("internvl2_5"))


def test_special_tokens_that_no_prompt_needs_may_be_missing(model: ModelConfig, tmp_path: Path) -> None:
    drop(tmp_path, "<quad>", "</quad>", "<tool_call>", "<|endoftext|>")
    create_builder(tmp_path, model, ChatTemplateConfig("internvl2_5"))


def test_tools_are_refused_where_the_tokenizer_lacks_the_tokens_of_their_syntax(
    model: ModelConfig, builder: RequestBuilder, tokenizer_folders: Mapping[str, Path]
) -> None:
    messages = [TOOLS, *parse_prompt("q")]
    with pytest.raises(InputError, match=mentions("internvl2_5", "tools")):
        builder.build(messages, GenerationConfig(), "r")
    direct = replace(builder, profile=PROFILES["internvl2_5"])
    assert direct.profile.tools == builder.profile.tools == ""
    with pytest.raises(InputError, match=mentions("internvl2_5", "tools")):
        direct.build(messages, GenerationConfig(), "r")
    other = create_builder(tokenizer_folders["demo"], model, ChatTemplateConfig("internvl2_5"))
    assert other.tokenizer.special_id("<|plugin|>") in other.build(messages, GenerationConfig(), "r").token_ids


def test_tools_are_refused_where_what_grounds_an_answer_is_missing(model: ModelConfig, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(demo.model_folder() / name, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    last = max(config["added_tokens_decoder"], key=int)
    assert config["added_tokens_decoder"].pop(last)["content"] == "</box>"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="tools"):
        create_builder(tmp_path, model).build([TOOLS, *parse_prompt("q")], GenerationConfig(), "r")
