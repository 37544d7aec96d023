"""Several decoder processes, so that one client's pictures do not stop another's. First come, first served.

How a picture is decoded is `image_decoder`'s. Each picture has a thread of its own, which waits for a decoder, uses it
and hands it back. So Ctrl-C, which reaches the main thread alone, can never interrupt what the pool counts, and a
caller may leave at any time: the thread finishes without it.
"""

import atexit
import os
import queue
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from tilewise.errors import CapacityError
from tilewise.inputs.media.address_guard import POLL_S
from tilewise.inputs.media.fetch_context import check_wanted, current_context
from tilewise.inputs.media.image_decoder import DecodedImage, ImageDecoder
from tilewise.inputs.media.policy import ImageLimits

# With two cores a picture gets through beside five that burn their CPU time: the system shares the cores out. Every
# process may take 1 GB for a picture of 50 megapixels, so more cores bring few more.
_FEWEST_PROCESSES, _MOST_PROCESSES = 6, 8
_IDLE_S = 30.0


def create_decoders(num_cores: int) -> list[ImageDecoder]:
    """The decoders of a machine: one a core, from 6 to 8."""
    return [ImageDecoder() for _ in range(min(max(num_cores, _FEWEST_PROCESSES), _MOST_PROCESSES))]


@dataclass(slots=True, eq=False)
class _Job:
    """A picture on its way through the pool; what became of it is put into `results`."""

    data: bytes
    limits: ImageLimits
    results: queue.SimpleQueue[DecodedImage | Exception] = field(default_factory=lambda: queue.SimpleQueue())
    is_wanted: bool = True
    begun_at: float | None = None

    def wait(self, most_s: float) -> DecodedImage:
        """Wait for the picture, and for its turn at most so many seconds."""
        deadline = time.monotonic() + most_s
        while True:
            with suppress(queue.Empty):
                result = self.results.get(timeout=POLL_S)
                break
            check_wanted()
            if self.begun_at is None and time.monotonic() >= deadline:
                raise CapacityError(
                    f"All decoders are busy with other pictures, and none was free for {max(most_s, 0):.3g} s. "
                    "Send the picture again later."
                )
        if isinstance(result, Exception):
            raise result
        return result


class DecoderPool:
    """Shares `decoders` out among pictures; starts a process only when every other one has a picture.

    A process that a picture has killed is replaced before its decoder is handed back. Of processes that have been idle
    for `idle_s` seconds one is kept.
    """

    def __init__(self, decoders: Iterable[ImageDecoder], *, idle_s: float = _IDLE_S) -> None:
        """Start nothing yet; nobody else may use the decoders."""
        self._decoders = tuple(decoders)
        self._idle_s = idle_s
        self._set_up()

    def _set_up(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._waiting: list[_Job] = []
        # Since when each is free; the one that was used last is the last.
        self._free_since = dict.fromkeys(self._decoders, 0.0)
        self._sweeper: threading.Timer | None = None
        self._num_closes = 0

    @property
    def process_ids(self) -> list[int]:
        """Ids of the processes that run."""
        ids = [decoder.process_id for decoder in self._decoders]
        return [process_id for process_id in ids if process_id is not None]

    @property
    def num_waiting(self) -> int:
        """How many pictures wait for a decoder."""
        return len(self._waiting)

    @property
    def num_decoding(self) -> int:
        """How many decoders have a picture."""
        return len(self._decoders) - len(self._free_since)

    def decode(self, data: bytes, limits: ImageLimits) -> DecodedImage:
        """Return (width, height, RGB bytes) of an encoded picture.

        Units: it waits for a decoder `limits.decode_wait_s` at most, or what the request has left for that.

        Raises:
            ImageError: the bytes are not a picture that can be decoded within `limits`.
            ImageFetchError: its client has left.
            CapacityError: no decoder was free in time, could be started, or was let run.
        """
        context, started_at = current_context.get(), time.monotonic()
        job = _Job(data, limits)
        threading.Thread(target=self._serve, args=(job,), name="tilewise-decode", daemon=True).start()
        try:
            return job.wait(limits.decode_wait_s if context is None else context.decoder_left_s)
        finally:
            job.is_wanted = False
            if context is not None:
                context.decoder_left_s -= (job.begun_at or time.monotonic()) - started_at

    def close(self) -> None:
        """End all processes, as `ImageDecoder.close` does."""
        self._num_closes += 1
        for decoder in self._decoders:
            decoder.close()

    def forget(self) -> None:
        """In a forked child: let go of the processes, which belong to the parent."""
        for decoder in self._decoders:
            decoder.forget()
        self._set_up()

    def _serve(self, job: _Job) -> None:
        """Be a picture's thread."""
        num_closes = self._num_closes
        decoder = self._take(job)
        if decoder is None:
            return
        try:
            result = decoder.decode(job.data, job.limits)
        except Exception as error:
            result = error
        if decoder.process_id is None:
            job.results.put(result)
            self._restart(decoder, num_closes)
            self._put_back(decoder)
        else:  # back first: who asks for one picture after another needs one decoder
            try:
                self._put_back(decoder)
            finally:
                job.results.put(result)

    def _restart(self, decoder: ImageDecoder, num_closes: int) -> None:
        """Replace a process that a picture has killed, unless the pool was closed since."""
        if num_closes == self._num_closes:
            with suppress(CapacityError):
                decoder.start()
        if num_closes != self._num_closes:  # meanwhile
            decoder.close()

    def _take(self, job: _Job) -> ImageDecoder | None:
        """Wait for a decoder; None once nobody waits for the picture any more."""
        with self._changed:
            self._waiting.append(job)
            while job.is_wanted and not (self._free_since and self._waiting[0] is job):
                self._changed.wait(POLL_S)
            self._waiting.remove(job)
            self._changed.notify_all()
            if not job.is_wanted:
                return None
            job.begun_at = time.monotonic()
            running = [decoder for decoder in self._free_since if decoder.process_id is not None]
            decoder = (running or list(self._free_since))[-1]
            del self._free_since[decoder]
            return decoder

    def _put_back(self, decoder: ImageDecoder) -> None:
        with self._changed:
            self._free_since[decoder] = time.monotonic()
            self._changed.notify_all()
            self._plan_sweep()

    def _plan_sweep(self) -> None:
        num_running = sum(decoder.process_id is not None for decoder in self._free_since)
        if self._sweeper is None and num_running > 1:
            sweeper = threading.Timer(self._idle_s, self._sweep)
            sweeper.daemon = True
            sweeper.start()
            self._sweeper = sweeper

    def _sweep(self) -> None:
        """End the processes that have been idle long, but for the one that was used last."""
        with self._changed:
            self._sweeper = None
            oldest = time.monotonic() - self._idle_s
            running = [decoder for decoder in self._free_since if decoder.process_id is not None]
            for decoder in running[:-1]:
                if self._free_since[decoder] <= oldest:
                    decoder.close()
            self._plan_sweep()


SHARED_DECODERS = DecoderPool(create_decoders(os.cpu_count() or 1))
atexit.register(SHARED_DECODERS.close)
os.register_at_fork(after_in_child=SHARED_DECODERS.forget)
