import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from tilewise.checkpoint.hf_config import load_model_config
from tilewise.checkpoint.weights import load_weights
from tilewise.demo import model_folder
from tilewise.errors import CheckpointError
from tilewise.inputs.text.tokenizer import load_tokenizer

BROKEN = {
    "empty": b"",
    "truncated": b'{"architectures": ["InternVL',
    "not an object": b'["InternVLChatModel"]',
    "not UTF-8": b'{"a": "\xff\xfe\xfa"}',
    "binary": bytes(range(256)),
    "too deep": b'{"a": ' + b"[" * 200_000,
    "digits without end": b'{"a": ' + b"9" * 100_000 + b"}",
    "larger than any config": b'{"a": "' + b"x" * (17 << 20) + b'"}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_config_is_one_short_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json") as refusal:
        load_model_config(tmp_path)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_an_error_that_names_it_and_nothing_hangs(tmp_path: Path, make) -> None:
    def load_no_weights(folder: Path) -> None:
        load_weights(folder, {}, torch.device("cpu"))

    for name, load in (
        ("config.json", load_model_config),
        ("tokenizer_config.json", load_tokenizer),
        ("model.safetensors.index.json", load_no_weights),
        ("model.safetensors", load_no_weights),
    ):
        folder = tmp_path / name
        folder.mkdir()
        make(folder / name)
        with pytest.raises(CheckpointError, match=f"^{re.escape(name)} .*is no file"):
            load(folder)


def test_a_pipe_in_place_of_the_tokenizers_pieces_is_refused(tmp_path: Path) -> None:
    shutil.copy(model_folder() / "tokenizer_config.json", tmp_path)
    os.mkfifo(tmp_path / "tokenizer.model")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model .*is no file"):
        load_tokenizer(tmp_path)
