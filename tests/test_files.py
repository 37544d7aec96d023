"""Files that somebody named and that are no plain ones, or too large."""

import os
from pathlib import Path

import pytest

from tilewise.files import NoPlainFileError, read_file


def test_a_file_is_read_whole_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_file(tmp_path / "link", 100) == b"x" * 100
    with pytest.raises(OSError, match="larger than"):
        read_file(tmp_path / "a", 99)


def test_what_is_no_plain_file_is_refused_and_neither_waited_for_nor_left_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(NoPlainFileError) as caught:
            read_file(path, 100)
        assert "no plain file" in (caught.value.strerror or "")
    if before:
        assert len(os.listdir("/proc/self/fd")) == len(before)
