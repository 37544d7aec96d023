import json
from pathlib import Path

import numpy as np
import pytest

from tilewise.demo import model_folder
from tilewise.errors import CheckpointError
from tilewise.inputs.text.guide_compiler import GuideCompiler
from tilewise.inputs.text.tokenizer import load_tokenizer

FORM = json.dumps({"type": "choice", "choice": ["yes"]})


@pytest.mark.parametrize("is_warm", [False, True])
def test_a_form_is_compiled_over_the_folders_own_tokenizer(is_warm: bool) -> None:
    tokenizer = load_tokenizer(model_folder())
    compiler = GuideCompiler(model_folder(), tokenizer.vocab_size)
    if is_warm:
        compiler.warm_up()
    mask = np.zeros((tokenizer.vocab_size + 7) // 8, np.uint8)
    compiler.compile(FORM).fill(mask, (), (), is_short=False)
    allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
    assert len(allowed)
    assert {tokenizer.token_bytes(int(token_id))[:1] for token_id in allowed} == {b"y"}


def test_a_folder_without_a_tokenizer_is_refused_where_a_form_needs_it(tmp_path: Path) -> None:
    compiler = GuideCompiler(tmp_path, 100)
    compiler.warm_up()
    with pytest.raises(CheckpointError, match="tokenizer"):
        compiler.compile(FORM)
