from pathlib import Path

import pytest

from tilewise.checkpoint.hf_config import load_model_config
from tilewise.errors import CheckpointError

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


def test_a_config_that_is_a_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model_config(tmp_path)
