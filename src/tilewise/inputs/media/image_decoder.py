"""Decodes pictures in worker processes, so that a hostile file can kill or stall no more than one of those.

`Decoder` is the parent's side, `main` the worker's: `python -m tilewise.inputs.media.image_decoder` reads requests from
stdin and answers on stdout until stdin ends. Frames are fixed structs followed by raw bytes; nothing is pickled.

    start     _READY once the decoders are loaded
    request   _REQUEST  number of bytes and limits, then the bytes
    reply     _REPLY    _PIXELS, width, height     then width * height * 3 bytes of RGB
                        _REFUSED or _TOO_LARGE, length, 0    then that many bytes of message

A worker holds no picture between requests, bounds its own memory and CPU time where the platform can, ends with
its parent (stdin closes), and never imports torch.
"""

import atexit
import contextlib
import io
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import cast

from tilewise.errors import CapacityError, ImageError, ImageTooLargeError
from tilewise.inputs.media.policy import MIB, ImageLimits

_REQUEST = struct.Struct("<QQQdQd")
_SENT_LIMITS = ("max_pixels", "max_side", "max_aspect_ratio", "aspect_free_pixels", "decode_timeout_s")
_REPLY = struct.Struct("<BII")
_PIXELS, _REFUSED, _TOO_LARGE = range(3)
_READY = b"+"
_START_TIMEOUT_S, _END_TIMEOUT_S = 30.0, 5.0
_KEPT_VARIABLES = frozenset(
    ("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "HOME", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT")
)
_MAX_MESSAGE_BYTES = 4096
_STRIP_BYTES = 4 * MIB
_BASE_MEMORY_BYTES = 512 * MIB
# Measured with Pillow 13 at 50 MP: 20 bytes a pixel at the peak (lossless RGBA WebP with an EXIF turn).
_MEMORY_BYTES_PER_PIXEL = 24


def _read_exactly(stream: io.FileIO, num_bytes: int) -> bytearray:
    data = bytearray(num_bytes)
    view = memoryview(data)
    while view:
        count = stream.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]
    return data


def _write_all(stream: io.FileIO, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def child_environment(*, with_secrets: bool = False) -> dict[str, str]:
    """What Python and its libraries need to start and to find this very package: no token or key of the parent's.

    `with_secrets` keeps them, for a child that does what this process would.
    """
    kept = dict(os.environ)
    if not with_secrets:
        kept = {name: value for name, value in kept.items() if name in _KEPT_VARIABLES or name.startswith("LC_")}
    package_root = Path(__file__).parents[3]
    if package_root.name not in ("site-packages", "dist-packages"):  # NOTE: on PYTHONPATH these would shadow the stdlib
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(package_root), kept.get("PYTHONPATH"))))
    return kept


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[bytes], seconds: float) -> Generator[None]:
    watchdog = threading.Timer(seconds, process.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[io.FileIO, io.FileIO]:
    return cast(io.FileIO, process.stdin), cast(io.FileIO, process.stdout)


def _exchange(process: subprocess.Popen[bytes], data: bytes, limits: ImageLimits) -> tuple[int, int, int, bytearray]:
    """Send one picture; return status, width and height, and the pixels or the message."""
    requests, replies = _pipes(process)
    _write_all(requests, _REQUEST.pack(len(data), *(getattr(limits, name) for name in _SENT_LIMITS)))
    _write_all(requests, data)
    status, first, second = _REPLY.unpack(_read_exactly(replies, _REPLY.size))
    if status != _PIXELS:
        return status, 0, 0, _read_exactly(replies, min(first, _MAX_MESSAGE_BYTES))
    if first * second > limits.max_pixels:
        raise EOFError
    return status, first, second, _read_exactly(replies, first * second * 3)


class Decoder:
    """One decoder process, started when first needed, used by any number of threads in turn.

    It is replaced when it dies, when it is too slow (then it is killed), when its user was interrupted, and after
    `recycle_after` pictures, so that a leak in a decoder stays small. After `close` the next picture starts anew.

    NOTE: Ctrl-C may end any method after any call, also its cleaning up. So only a process whose last exchange was
    seen to its end counts as ready, and whatever else is found is ended by the next user.
    """

    def __init__(self, *, recycle_after: int = 500) -> None:
        """Start nothing yet."""
        self._recycle_after = recycle_after
        self._set_up()

    def _set_up(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._num_pictures = 0
        self._is_ready = False

    @property
    def process_id(self) -> int | None:
        """Id of the process, if it runs."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def decode(self, data: bytes, limits: ImageLimits) -> tuple[int, int, bytes | bytearray]:
        """Return (width, height, RGB bytes) of an encoded picture; waits for its turn.

        Raises:
            ImageError: the bytes are not a picture that can be decoded within `limits`.
            CapacityError: no process could be started.
        """
        with self._lock:
            process = self._start_if_needed()
            self._num_pictures += 1
            try:
                with _killed_after(process, limits.decode_timeout_s):
                    status, width, height, content = _exchange(process, data, limits)
                self._is_ready = True
            except (OSError, EOFError, struct.error):
                raise ImageError(
                    f"The picture could not be decoded within {limits.decode_timeout_s:g} s and the memory allowed. "
                    "Save it again, or scale it down."
                ) from None
            finally:
                if not self._is_ready:
                    self._end()
        if status != _PIXELS:
            raise (ImageTooLargeError if status == _TOO_LARGE else ImageError)(content.decode(errors="replace"))
        return width, height, content

    def close(self) -> None:
        """End the process; a picture that is being decoded fails with an ImageError, unless it is finished first."""
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def forget(self) -> None:
        """In a forked child: let go of the process, which belongs to the parent."""
        if self._process is not None:
            self._process.returncode = 0
            for pipe in _pipes(self._process):
                pipe.close()
        self._set_up()

    def _start_if_needed(self) -> subprocess.Popen[bytes]:
        process, is_fresh = self._process, self._is_ready and self._num_pictures < self._recycle_after
        self._is_ready = False
        if process is not None and is_fresh and process.poll() is None:
            return process
        for _ in range(2):
            self._end()
            with contextlib.suppress(OSError, EOFError):
                # -P: the folder that the user happens to be in may hold its own PIL
                command = [sys.executable, "-P", "-m", "tilewise.inputs.media.image_decoder"]
                env = child_environment()
                self._process = subprocess.Popen(command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=env)
                with _killed_after(self._process, _START_TIMEOUT_S):
                    _read_exactly(_pipes(self._process)[1], len(_READY))
                return self._process
        raise CapacityError(
            "No decoder process could be started for the picture; check this machine's memory and process limits, "
            "then try again."
        )

    def _end(self) -> None:
        process, self._num_pictures, self._is_ready = self._process, 0, False
        if process is not None:
            process.kill()
            for pipe in _pipes(process):
                pipe.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # an interrupt inside Popen may leave its lock taken
                process.wait(_END_TIMEOUT_S)
            self._process = None


SHARED_DECODER = Decoder()
atexit.register(SHARED_DECODER.close)
os.register_at_fork(after_in_child=SHARED_DECODER.forget)


def _bound_self(limits: ImageLimits) -> None:
    """Allow this process the memory and CPU time of one more picture, and no core file."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    bounds = {
        resource.RLIMIT_AS: _BASE_MEMORY_BYTES + _MEMORY_BYTES_PER_PIXEL * limits.max_pixels,
        resource.RLIMIT_CPU: math.ceil(usage.ru_utime + usage.ru_stime + limits.decode_timeout_s),
        resource.RLIMIT_CORE: 0,
    }
    for kind, soft in bounds.items():
        _, hard = resource.getrlimit(kind)
        with contextlib.suppress(OSError, ValueError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _answer(data: bytearray, limits: ImageLimits, replies: io.FileIO) -> None:
    from PIL import Image

    from tilewise.inputs.media import pixels

    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    try:
        image = pixels.decode(data, limits)
    except ImageError as error:
        message = str(error).encode()[:_MAX_MESSAGE_BYTES]
        status = _TOO_LARGE if isinstance(error, ImageTooLargeError) else _REFUSED
        _write_all(replies, _REPLY.pack(status, len(message), 0) + message)
        return
    _write_all(replies, _REPLY.pack(_PIXELS, image.width, image.height))
    step = max(1, _STRIP_BYTES // (3 * image.width))
    for top in range(0, image.height, step):
        _write_all(replies, image.crop((0, top, image.width, min(top + step, image.height))).tobytes())


def main() -> None:
    """Serve decoding requests from stdin until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    requests, replies = io.FileIO(os.dup(0), "r"), io.FileIO(os.dup(1), "w")
    os.dup2(2, 1)  # a stray print must not land between frames
    from PIL import Image, WebPImagePlugin

    Image.preinit()
    assert WebPImagePlugin  # imported for its registration
    with contextlib.suppress(EOFError, OSError):
        _write_all(replies, _READY)
        while True:
            num_bytes, *bounds = _REQUEST.unpack(_read_exactly(requests, _REQUEST.size))
            limits = ImageLimits(**dict(zip(_SENT_LIMITS, bounds, strict=True)))
            data = _read_exactly(requests, num_bytes)
            _bound_self(limits)
            _answer(data, limits, replies)


if __name__ == "__main__":
    main()
