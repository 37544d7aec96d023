"""Reads a file that somebody named: a plain one, whole, of bounded size, and never waiting for a writer.

Every refusal of `read_file` is an `OSError` whose `strerror` says what is wrong, so that callers have one thing to
catch and name the file in their own words; of a model's own files all are told in the same.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from tilewise.errors import CheckpointError

# NOTE: without O_NONBLOCK opening a named pipe waits until somebody writes to it.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK


class NoPlainFileError(OSError):
    """A folder, a pipe, a socket or a device."""


def open_file(path: str | Path, flags: int = 0) -> BinaryIO:
    """Open a plain file for reading; `flags` are more of `os.open`.

    Raises:
        NoPlainFileError: it is none.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, _FLAGS | flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NoPlainFileError(errno.EINVAL, "it is a folder, a pipe or a device, and no plain file")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: str | Path, max_bytes: int) -> bytes:
    """Read a plain file of at most `max_bytes`.

    Raises:
        OSError: it cannot be read, is no plain file, or is larger.
    """
    with open_file(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes >> 10} KiB")
    return content


def read_model_file(path: Path, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes` that a model folder must have.

    Raises:
        CheckpointError: it is missing, cannot be read, or is larger.
    """
    try:
        return read_file(path, max_bytes)
    except (FileNotFoundError, NoPlainFileError):
        raise CheckpointError(f"{path.name} is missing from the model folder, or is no file; it is required.") from None
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}.") from None
