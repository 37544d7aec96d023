"""Decodes pictures in worker processes, so that a hostile file can kill or stall no more than one of those.

`DecoderPool` is the parent's side, `main` the worker's: `python -m tilewise.inputs.decoder` reads requests from
stdin and answers on stdout until stdin ends. Frames are fixed structs followed by raw bytes; nothing is pickled.

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
import queue
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import cast

from tilewise.errors import CapacityError, ImageError, ImageTooLargeError
from tilewise.inputs.policy import MIB, ImageLimits

_REQUEST = struct.Struct("<QQQdQd")
_REPLY = struct.Struct("<BII")
_PIXELS, _REFUSED, _TOO_LARGE = range(3)
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


def _environment() -> dict[str, str]:
    """Let the child find this very package, wherever the parent found it."""
    package_root = Path(__file__).parents[2]
    if package_root.name in ("site-packages", "dist-packages"):  # NOTE: on PYTHONPATH these would shadow the stdlib
        return dict(os.environ)
    inherited = os.environ.get("PYTHONPATH")
    search_path = os.pathsep.join((str(package_root), inherited)) if inherited else str(package_root)
    return {**os.environ, "PYTHONPATH": search_path}


class _Worker:
    """One decoder process and the two pipes to it; used by one thread at a time."""

    def __init__(self) -> None:
        self.num_pictures = 0
        self.process = subprocess.Popen(  # -P: the folder that the user happens to be in may hold a PIL of its own
            [sys.executable, "-P", "-m", "tilewise.inputs.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=_environment(),
        )
        self._requests = cast(io.FileIO, self.process.stdin)
        self._replies = cast(io.FileIO, self.process.stdout)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def decode(self, data: bytes, limits: ImageLimits) -> tuple[int, int, bytes | bytearray]:
        """Return (width, height, pixels); OSError or EOFError if the process died or was too slow."""
        self.num_pictures += 1
        watchdog = threading.Timer(limits.decode_timeout_s, self.process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            request = _REQUEST.pack(
                len(data),
                limits.max_pixels,
                limits.max_side,
                limits.max_aspect_ratio,
                limits.aspect_free_pixels,
                limits.decode_timeout_s,
            )
            _write_all(self._requests, request)
            _write_all(self._requests, data)
            status, first, second = _REPLY.unpack(_read_exactly(self._replies, _REPLY.size))
            if status == _PIXELS:
                if first * second > limits.max_pixels:
                    raise EOFError
                return first, second, _read_exactly(self._replies, first * second * 3)
            message = _read_exactly(self._replies, min(first, _MAX_MESSAGE_BYTES)).decode()
        finally:
            watchdog.cancel()
        raise (ImageTooLargeError if status == _TOO_LARGE else ImageError)(message)

    def end(self) -> None:
        """Kill the process and collect it; nothing of value can be lost."""
        self.process.kill()
        self.close_pipes()
        self.process.wait()

    def close_pipes(self) -> None:
        self._requests.close()
        self._replies.close()


class DecoderPool:
    """Up to `size` decoder processes, started when first needed, shared by any number of threads.

    A worker is replaced when it dies, when it is too slow (then it is killed), and after `recycle_after`
    pictures, so that a leak in a decoder stays small. A pool that was closed starts anew on its next picture.
    """

    def __init__(self, size: int = 1, *, recycle_after: int = 500) -> None:
        """Make the pool; no process starts yet."""
        self._size = size
        self._recycle_after = recycle_after
        self._set_up()

    def _set_up(self) -> None:
        self._workers: set[_Worker] = set()
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self._size):
            self._idle.put(None)

    @property
    def process_ids(self) -> frozenset[int]:
        """Ids of the processes that run now."""
        return frozenset(worker.process.pid for worker in tuple(self._workers) if worker.is_alive)

    def decode(self, data: bytes, limits: ImageLimits) -> tuple[int, int, bytes | bytearray]:
        """Return (width, height, RGB bytes) of an encoded picture; waits for a free worker.

        Raises:
            ImageError: the bytes are not a picture that can be decoded within `limits`.
            CapacityError: no process could be started.
        """
        worker = self._idle.get()
        is_intact = False
        try:
            worker = self._revive(worker)
            result = worker.decode(data, limits)
            is_intact = True
            return result
        except ImageError:
            is_intact = True
            raise
        except (OSError, EOFError, struct.error):
            raise ImageError(
                f"The picture could not be decoded within {limits.decode_timeout_s:g} s and the memory allowed. "
                "Save it again, or scale it down."
            ) from None
        finally:
            if not is_intact:
                self._end(worker)
            self._idle.put(worker if is_intact else None)

    def close(self) -> None:
        """End every worker; a picture that is being decoded fails with an ImageError."""
        idle: list[_Worker | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._idle.get_nowait())
        for worker in idle:
            self._end(worker)
            self._idle.put(None)
        for worker in tuple(self._workers):  # busy: the thread that waits for it collects it
            worker.process.kill()

    def forget(self) -> None:
        """In a forked child: let go of the workers, which belong to the parent."""
        for worker in self._workers:
            worker.close_pipes()
            worker.process.returncode = 0
        self._set_up()

    def _revive(self, worker: _Worker | None) -> _Worker:
        if worker is not None and worker.is_alive and worker.num_pictures < self._recycle_after:
            return worker
        self._end(worker)
        try:
            worker = _Worker()
        except OSError:
            raise CapacityError("No process for decoding pictures could be started; try again later.") from None
        self._workers.add(worker)
        return worker

    def _end(self, worker: _Worker | None) -> None:
        if worker is not None:
            self._workers.discard(worker)
            worker.end()


SHARED_POOL = DecoderPool()
atexit.register(SHARED_POOL.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SHARED_POOL.forget)


def _bound_self(limits: ImageLimits) -> None:
    """Allow this process the memory and CPU time of one more picture, and no core file."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the only bound
        return
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

    from tilewise.inputs import pixels

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
        while True:
            num_bytes, max_pixels, max_side, aspect, free_pixels, timeout_s = _REQUEST.unpack(
                _read_exactly(requests, _REQUEST.size)
            )
            data = _read_exactly(requests, num_bytes)
            limits = ImageLimits(
                max_pixels=max_pixels,
                max_side=max_side,
                max_aspect_ratio=aspect,
                aspect_free_pixels=free_pixels,
                decode_timeout_s=timeout_s,
            )
            _bound_self(limits)
            _answer(data, limits, replies)


if __name__ == "__main__":
    main()
