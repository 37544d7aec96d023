"""Decodes pictures in a process of its own: `python -P -m tilewise.inputs.media.decoder_worker`.

Requests are read from stdin and answered on stdout until stdin ends. Frames are fixed structs followed by raw bytes;
nothing is pickled.

    start     READY once the decoders are loaded
    request   REQUEST  number of bytes and limits, then the bytes
    reply     REPLY    PIXELS, width, height     then width * height * 3 bytes of RGB
                       REFUSED or TOO_LARGE, length, 0    then that many bytes of message

A worker holds no picture between requests, bounds its own memory and CPU time where the platform can, ends with
its parent (stdin closes), and never imports torch. The way in which it ends tells what a picture did: SIGPROF or
SIGXCPU that it used up its CPU time, the status OUT_OF_MEMORY its memory.
"""

import contextlib
import io
import math
import mmap
import os
import resource
import signal
import struct
import sys
from collections.abc import Generator

from tilewise.errors import ImageError, ImageTooLargeError
from tilewise.inputs.media.policy import MIB, ImageLimits

REQUEST = struct.Struct("<QQQdQd")
SENT_LIMITS = ("max_pixels", "max_side", "max_aspect_ratio", "aspect_free_pixels", "decode_cpu_s")
REPLY = struct.Struct("<BII")
PIXELS, REFUSED, TOO_LARGE = range(3)
READY = b"+"
MAX_MESSAGE_BYTES = 4096
OUT_OF_MEMORY = 77
_STRIP_BYTES = 4 * MIB
_BASE_MEMORY_BYTES = 512 * MIB
# Measured with Pillow 13 at 50 MP: 20 bytes a pixel at the peak (lossless RGBA WebP with an EXIF turn).
_MEMORY_BYTES_PER_PIXEL = 24


def read_exactly(stream: io.FileIO, num_bytes: int) -> bytearray:
    """Read so many bytes; an early end is an `EOFError`."""
    data = bytearray(num_bytes)
    _read_into(stream, memoryview(data))
    return data


def read_pixels(stream: io.FileIO, num_bytes: int) -> memoryview:
    """Read so many bytes, of which there may be many; an early end is an `EOFError`.

    PERF: a bytearray is zeroed and given back while no other thread runs: 66 ms for 49 megapixels (2 cores).
    """
    data = memoryview(mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    _read_into(stream, data)
    return data


def _read_into(stream: io.FileIO, view: memoryview) -> None:
    while view:
        count = stream.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]


def write_all(stream: io.FileIO, data: bytes | bytearray) -> None:
    """Write all of it; a pipe may take it in pieces."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


@contextlib.contextmanager
def _bounded(limits: ImageLimits) -> Generator[None]:
    """Allow this process the memory and CPU time of one more picture, and no core file.

    The CPU time ends in a signal's default action, which kills: no handler in Python runs within one long C call.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    bounds = {
        resource.RLIMIT_AS: _BASE_MEMORY_BYTES + _MEMORY_BYTES_PER_PIXEL * limits.max_pixels,
        # In whole seconds, so it only catches what would switch the timer off.
        resource.RLIMIT_CPU: math.ceil(usage.ru_utime + usage.ru_stime + limits.decode_cpu_s) + 1,
        resource.RLIMIT_CORE: 0,
    }
    for kind, soft in bounds.items():
        _, hard = resource.getrlimit(kind)
        with contextlib.suppress(OSError, ValueError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    signal.setitimer(signal.ITIMER_PROF, limits.decode_cpu_s)
    try:
        yield
    finally:
        # NOTE: before the answer; a process that ended right after it would be blamed on the next picture
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(data: bytearray, limits: ImageLimits, replies: io.FileIO) -> None:
    from PIL import Image

    from tilewise.inputs.media import pixels

    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    try:
        with _bounded(limits):
            image = pixels.decode(data, limits)
    except ImageError as error:
        message = str(error).encode()[:MAX_MESSAGE_BYTES]
        status = TOO_LARGE if isinstance(error, ImageTooLargeError) else REFUSED
        write_all(replies, REPLY.pack(status, len(message), 0) + message)
        return
    write_all(replies, REPLY.pack(PIXELS, image.width, image.height))
    step = max(1, _STRIP_BYTES // (3 * image.width))
    for top in range(0, image.height, step):
        write_all(replies, image.crop((0, top, image.width, min(top + step, image.height))).tobytes())


def main() -> None:
    """Serve decoding requests from stdin until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPROF, signal.SIGXCPU))
    requests, replies = io.FileIO(os.dup(0), "r"), io.FileIO(os.dup(1), "w")
    os.dup2(2, 1)  # a stray print must not land between frames
    from PIL import Image, WebPImagePlugin

    Image.preinit()
    assert WebPImagePlugin  # imported for its registration
    with contextlib.suppress(EOFError, OSError):
        write_all(replies, READY)
        while True:
            num_bytes, *bounds = REQUEST.unpack(read_exactly(requests, REQUEST.size))
            limits = ImageLimits(**dict(zip(SENT_LIMITS, bounds, strict=True)))
            try:
                data = read_exactly(requests, num_bytes)
                _answer(data, limits, replies)
            except MemoryError:
                sys.exit(OUT_OF_MEMORY)
            del data


if __name__ == "__main__":
    main()
