"""Ids of byte-level BPE against transformers' own class, for texts that hold no added token."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.real_qwen import write_release
from tests.small_tokenizers import QWEN_NAMES, train
from tilewise.inputs.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "It's 12345 o'clock,  isn't IT?\r\n\n\tif x:\n        return y  # done   ",
    "请描述图中内容。这张图片展示了一只猫。",
    "Ünïcode cafe\u0301 \u1112\u1161\u11ab 😀👩‍👩‍👧 ＡＢＣ ½ \u00a0\u3000x",
    "<|im_star t|> <img >",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module", params=["small", "real"])
def folder(request: pytest.FixtureRequest, qwen_folder: Path) -> Path:
    if request.param == "small":
        return qwen_folder
    return write_release(request.getfixturevalue("real_qwen_folder"), "Qwen2.5")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    from transformers import Qwen2Tokenizer

    if (folder / "tokenizer.json").exists():
        model = train()
        return Qwen2Tokenizer(vocab=dict(model["vocab"]), merges=[tuple(pair) for pair in model["merges"]])
    return Qwen2Tokenizer.from_pretrained(folder)


def check(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("text", TEXTS)
def test_text_gets_the_ids_that_transformers_gives(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    check(tokenizer, reference, text)


@given(text=ANY_TEXT)
def test_any_text_gets_the_ids_that_transformers_gives(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    if not any(name in text for name in QWEN_NAMES):
        check(tokenizer, reference, text)
