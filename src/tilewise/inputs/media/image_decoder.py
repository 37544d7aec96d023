"""The parent's side of one decoder process, so that a hostile file can kill or stall no more than that.

What is written and read is described in `decoder_worker`. No byte of a picture is decoded in this process. Tells by
the way in which a process ended whose fault that is: the picture's, or this machine's.
"""

import contextlib
import io
import signal
import subprocess
import threading
from collections.abc import Generator
from subprocess import DEVNULL, PIPE
from typing import cast

from tilewise.child_process import child_command, child_environment
from tilewise.errors import CapacityError, ImageError, ImageTooLargeError
from tilewise.inputs.media.decoder_worker import (
    MAX_MESSAGE_BYTES,
    OUT_OF_MEMORY,
    PIXELS,
    READY,
    REPLY,
    REQUEST,
    SENT_LIMITS,
    TOO_LARGE,
    read_exactly,
    read_pixels,
    write_all,
)
from tilewise.inputs.media.policy import ImageLimits

_START_TIMEOUT_S, _END_TIMEOUT_S = 30.0, 5.0
_OUT_OF_CPU_TIME = (-signal.SIGPROF, -signal.SIGXCPU)
DecodedImage = tuple[int, int, bytes | memoryview]
_Reply = tuple[int, int, int, bytes | memoryview]


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[bytes], seconds: float) -> Generator[threading.Event]:
    """Kill the process once the time is over; the event tells whether it was."""
    is_over = threading.Event()

    def end() -> None:
        is_over.set()
        process.kill()

    watchdog = threading.Timer(seconds, end)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield is_over
    finally:
        watchdog.cancel()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[io.FileIO, io.FileIO]:
    return cast(io.FileIO, process.stdin), cast(io.FileIO, process.stdout)


def _exchange(process: subprocess.Popen[bytes], data: bytes, limits: ImageLimits) -> _Reply:
    """Send one picture; return status, width and height, and the pixels or the message."""
    requests, replies = _pipes(process)
    write_all(requests, REQUEST.pack(len(data), *(getattr(limits, name) for name in SENT_LIMITS)))
    write_all(requests, data)
    status, first, second = REPLY.unpack(read_exactly(replies, REPLY.size))
    if status != PIXELS:
        return status, 0, 0, bytes(read_exactly(replies, min(first, MAX_MESSAGE_BYTES)))
    if first * second > limits.max_pixels:
        process.kill()  # no decoder of ours says so
        raise EOFError
    return status, first, second, read_pixels(replies, first * second * 3)


def _check_end(process: subprocess.Popen[bytes], limits: ImageLimits) -> None:
    """Blame the picture where its decoder ended because of what it took; whatever else ended it was none of that."""
    status = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        status = process.wait(_END_TIMEOUT_S)
    if status in _OUT_OF_CPU_TIME:
        raise ImageError(
            f"The picture takes more than the {limits.decode_cpu_s:g} s of CPU time that its decoding may take. "
            "Save it again as a plain JPEG or PNG without comments and metadata, or scale it down."
        )
    if status == OUT_OF_MEMORY:
        raise ImageTooLargeError(
            f"The picture takes more memory than the {limits.max_pixels} pixels allowed may take. Scale it down."
        )


class ImageDecoder:
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
        self._num_closes = 0
        self._is_ready = False

    @property
    def process_id(self) -> int | None:
        """Id of the process, if it runs."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def decode(self, data: bytes, limits: ImageLimits) -> DecodedImage:
        """Return (width, height, RGB bytes) of an encoded picture; waits for its turn.

        A picture whose process is killed by others is given to a second process, and to no third.

        Raises:
            ImageError: the bytes are not a picture that can be decoded within `limits`.
            CapacityError: no process could be started, or kept, or it was not let run.
        """
        with self._lock:
            num_closes = self._num_closes
            reply = self._try(data, limits)
            if reply is None and num_closes == self._num_closes:
                reply = self._try(data, limits)
        if reply is None:
            raise CapacityError(
                "The picture's decoder was ended from outside; check this machine's memory, then send it again."
            )
        status, width, height, content = reply
        if status != PIXELS:
            raise (ImageTooLargeError if status == TOO_LARGE else ImageError)(bytes(content).decode(errors="replace"))
        return width, height, content

    def start(self) -> None:
        """Start the process unless it runs, so that the next picture need not wait for that.

        Raises:
            CapacityError: it could not be started.
        """
        with self._lock:
            self._start_if_needed()
            self._is_ready = True

    def close(self) -> None:
        """End the process; a picture that is being decoded fails with a CapacityError, unless it is finished first."""
        self._num_closes += 1
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

    def _try(self, data: bytes, limits: ImageLimits) -> _Reply | None:
        """Return the process's reply; None if it ended, and neither the picture nor its slowness was why."""
        process = self._start_if_needed()
        self._num_pictures += 1
        try:
            with _killed_after(process, limits.decode_timeout_s) as is_over:
                try:
                    reply = _exchange(process, data, limits)
                except (OSError, EOFError):
                    reply = None
            if reply is not None:
                self._is_ready = True
            elif is_over.is_set():
                raise CapacityError(
                    f"The picture's decoder had no answer after {limits.decode_timeout_s:g} s, and had not used the "
                    f"{limits.decode_cpu_s:g} s of CPU time that are allowed: this machine has too much to do. "
                    "Send the picture again later."
                )
            else:
                _check_end(process, limits)
            return reply
        finally:
            if not self._is_ready:
                self._end()

    def _start_if_needed(self) -> subprocess.Popen[bytes]:
        process, is_fresh = self._process, self._is_ready and self._num_pictures < self._recycle_after
        self._is_ready = False
        if process is not None and is_fresh and process.poll() is None:
            return process
        for _ in range(2):
            self._end()
            with contextlib.suppress(OSError, EOFError):
                command = child_command("tilewise.inputs.media.decoder_worker")
                env = child_environment()
                self._process = subprocess.Popen(command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=env)
                with _killed_after(self._process, _START_TIMEOUT_S):
                    read_exactly(_pipes(self._process)[1], len(READY))
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
