"""A whole pipeline over a tokenizer of Qwen's form, with a head that has more rows than the tokenizer has tokens."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.small_tokenizers import write_vocab_and_merges
from tilewise import ChatTemplateConfig, GenerationConfig, pipeline
from tilewise.demo import model_folder
from tilewise.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model's shapes without its weights and its tokenizer."""
    shutil.copy(model_folder() / "config.json", tmp_path)
    return write_vocab_and_merges(tmp_path)


def test_answers_are_of_the_tokenizers_ids_and_hold_to_forms(folder: Path) -> None:
    template = ChatTemplateConfig("internvl2_5", stop_words=["<|im_end|>"])
    options = {"device": "cpu", "load_format": "dummy", "kv_cache_bytes": 64 << 20}
    free = GenerationConfig(max_new_tokens=60, do_sample=True, top_k=0, temperature=2.0, random_seed=1)
    held = GenerationConfig(response_format={"type": "choice", "choice": ["猫😀", "dog\n"]}, max_new_tokens=20)
    with pipeline(str(folder), chat_template_config=template, **options) as pipe:
        tokenizer = pipe.builder.tokenizer
        num_rows = pipe.builder.model.decoder.vocab_size
        assert tokenizer.vocab_size < num_rows // 2, "else chance alone would do"
        picture = Image.new("RGB", (448, 448))
        said = pipe(("what <|im_end|>", picture), gen_config=free)
        assert len(said.token_ids) > 0
        assert max(said.token_ids) < tokenizer.vocab_size
        form = pipe(("what", picture), gen_config=held)
        assert tokenizer.decode(form.token_ids) in ("猫😀", "dog\n")
        assert form.finish_reason == "stop"


def test_a_tokenizer_that_lacks_a_token_is_told_of_before_a_weight_is_read(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = "<|other|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"<\|other\|>"):
        pipeline(str(folder), chat_template_config=ChatTemplateConfig("internvl2_5"))
