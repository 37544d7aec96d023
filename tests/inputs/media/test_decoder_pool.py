"""Row 36: one client's pictures do not stop another's."""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from PIL import Image

from tests.processes import PATIENCE_S
from tilewise.errors import CapacityError, ImageFetchError
from tilewise.inputs.media import decoder_pool as pool_module
from tilewise.inputs.media.decoder_pool import DecoderPool, create_decoders
from tilewise.inputs.media.fetch_context import current_context, use_fetch_context
from tilewise.inputs.media.image_decoder import ImageDecoder
from tilewise.inputs.media.policy import ImageLimits

PATIENT = ImageLimits(decode_timeout_s=PATIENCE_S, decode_wait_s=PATIENCE_S)


def encoded(width: int = 4, height: int = 2) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "BMP")
    return buffer.getvalue()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def opened(num_decoders: int, **options) -> Iterator[DecoderPool]:
    pool = DecoderPool([ImageDecoder() for _ in range(num_decoders)], **options)
    try:
        yield pool
    finally:
        pool.close()  # ends what is frozen, too, so that a test that fails does not hang
    assert not pool.process_ids


@pytest.fixture
def threads():
    with ThreadPoolExecutor(16) as threads:
        yield threads


def occupy(pool: DecoderPool, threads: ThreadPoolExecutor, limits: ImageLimits = PATIENT) -> tuple[int, Future]:
    """Freeze a decoder and give it a picture; return the process and what becomes of the picture."""
    known, num_decoding = set(pool.process_ids), pool.num_decoding
    pool.decode(encoded(), PATIENT)
    frozen = (set(pool.process_ids) - known or known).pop()
    os.kill(frozen, signal.SIGSTOP)
    decoded = threads.submit(pool.decode, encoded(9, 9), limits)
    wait_until(lambda: pool.num_decoding > num_decoding)
    return frozen, decoded


def test_a_frozen_decoder_keeps_its_own_picture_and_the_others_are_decoded_by_another(threads):
    with opened(2) as pool:
        frozen, held = occupy(pool, threads)
        for width in range(1, 20):
            assert pool.decode(encoded(width), PATIENT)[:2] == (width, 2)
        assert not held.done()
        assert len(pool.process_ids) == 2
        os.kill(frozen, signal.SIGCONT)
        assert held.result(PATIENCE_S)[:2] == (9, 9)


def test_a_frozen_decoders_picture_is_told_to_come_back_and_the_decoder_is_replaced(threads):
    with opened(1) as pool:
        frozen, held = occupy(pool, threads, ImageLimits(decode_timeout_s=0.2))
        with pytest.raises(CapacityError, match="too much to do"):
            held.result(PATIENCE_S)
        wait_until(lambda: pool.num_decoding == 0)
        [replacement] = pool.process_ids
        assert replacement != frozen
        assert pool.decode(encoded(), PATIENT)[:2] == (4, 2)
        assert pool.process_ids == [replacement]


def test_who_waits_longer_than_allowed_for_a_decoder_is_told_to_come_back(threads):
    with opened(1) as pool:
        frozen, held = occupy(pool, threads)
        with pytest.raises(CapacityError, match=r"none was free for 0\.1 s"):
            pool.decode(encoded(), ImageLimits(decode_wait_s=0.1))
        os.kill(frozen, signal.SIGCONT)
        assert held.result(PATIENCE_S)[:2] == (9, 9)
        wait_until(lambda: not pool.num_waiting)


def test_a_requests_pictures_share_the_seconds_that_they_may_wait_and_their_hosts_lose_none(threads):
    with opened(1) as pool:
        frozen, held = occupy(pool, threads)
        with use_fetch_context(0.1, lambda: True):
            for _ in range(2):
                with pytest.raises(CapacityError, match="none was free"):
                    pool.decode(encoded(), PATIENT)
            context = current_context.get()
            assert context is not None
            assert context.decoder_left_s <= 0 < context.left_s == 0.1
            os.kill(frozen, signal.SIGCONT)
            held.result(PATIENCE_S)
            assert pool.decode(encoded(), PATIENT)[:2] == (4, 2)  # one that need not wait needs none


def test_who_has_left_waits_no_longer(threads):
    with opened(1) as pool:
        is_wanted = threading.Event()
        is_wanted.set()
        frozen, held = occupy(pool, threads)

        def ask() -> None:
            with use_fetch_context(PATIENCE_S, is_wanted.is_set), pytest.raises(ImageFetchError, match="has left"):
                pool.decode(encoded(), PATIENT)

        waiting = threads.submit(ask)
        wait_until(lambda: pool.num_waiting == 1)
        is_wanted.clear()
        waiting.result(PATIENCE_S)
        assert not held.done()
        wait_until(lambda: not pool.num_waiting)
        os.kill(frozen, signal.SIGCONT)
        assert held.result(PATIENCE_S)[:2] == (9, 9)
        assert pool.decode(encoded(), PATIENT)[:2] == (4, 2)


class ScriptedDecoder(ImageDecoder):
    """Notes what it is given, and holds each picture until the test lets it go."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []
        self.gate = threading.Semaphore(0)

    def decode(self, data, limits):
        self.seen.append(data)
        assert self.gate.acquire(timeout=PATIENCE_S)
        return 1, 1, data

    def start(self):
        """There is no process."""


def test_who_came_first_is_served_first(threads):
    decoder = ScriptedDecoder()
    pool = DecoderPool([decoder])
    pictures = [bytes([number]) for number in range(10)]
    decoded = []
    for number, picture in enumerate(pictures):
        decoded.append(threads.submit(pool.decode, picture, PATIENT))
        wait_until(lambda number=number: pool.num_waiting + pool.num_decoding == number + 1)
    decoder.gate.release(len(pictures))
    assert [future.result(PATIENCE_S)[2] for future in decoded] == pictures
    assert decoder.seen == pictures


def test_a_picture_whose_client_left_while_it_waited_reaches_no_decoder(threads):
    decoder = ScriptedDecoder()
    pool = DecoderPool([decoder])
    first = threads.submit(pool.decode, b"first", PATIENT)
    wait_until(lambda: pool.num_decoding == 1)
    with use_fetch_context(PATIENCE_S, lambda: False), pytest.raises(ImageFetchError):
        pool.decode(b"left", PATIENT)
    decoder.gate.release(2)
    assert first.result(PATIENCE_S)[2] == b"first"
    assert pool.decode(b"last", PATIENT)[2] == b"last"
    assert decoder.seen == [b"first", b"last"]


def test_there_are_no_more_processes_than_decoders_and_one_where_one_does(threads):
    with opened(2) as pool:
        for width in range(1, 9):
            pool.decode(encoded(width), PATIENT)
        assert len(pool.process_ids) == 1
        frozen = [occupy(pool, threads) for _ in range(2)]
        waiting = [threads.submit(pool.decode, encoded(width), PATIENT) for width in range(1, 9)]
        wait_until(lambda: pool.num_waiting == 8)
        assert sorted(pool.process_ids) == sorted(process_id for process_id, _ in frozen)
        for process_id, _ in frozen:
            os.kill(process_id, signal.SIGCONT)
        assert [decoded.result(PATIENCE_S)[0] for decoded in waiting] == list(range(1, 9))
        assert sorted(pool.process_ids) == sorted(process_id for process_id, _ in frozen)


def test_of_processes_that_are_idle_long_one_is_kept(threads):
    with opened(3, idle_s=0.05) as pool:
        frozen = [occupy(pool, threads) for _ in range(2)]
        pool.decode(encoded(), PATIENT)
        assert len(pool.process_ids) == 3
        for process_id, held in frozen:
            os.kill(process_id, signal.SIGCONT)
            held.result(PATIENCE_S)
        wait_until(lambda: len(pool.process_ids) == 1)
        [kept] = pool.process_ids
        pool.decode(encoded(), PATIENT)
        assert pool.process_ids == [kept]


def test_a_machine_gets_more_decoders_than_four_clients_can_keep_busy_and_never_many():
    numbers = [len(create_decoders(num_cores)) for num_cores in (1, 2, 4, 7, 8, 128)]
    assert numbers == [6, 6, 6, 7, 8, 8]


def is_interrupted_after(number: int, decode: Callable[[], object]) -> bool:
    """Run `decode`, interrupting this thread after the `number`-th call that the pool's code makes or gets."""
    seen = 0

    def interrupt(frame, event, _):
        nonlocal seen
        if event in ("c_return", "return") and frame.f_code.co_filename in (pool_module.__file__, threading.__file__):
            seen += 1
            if seen == number:
                raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        decode()
    except (KeyboardInterrupt, RuntimeError):  # QUIRK: a condition interrupted while it waits releases its lock twice
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.parametrize("is_warm", [True, False])
def test_an_interrupt_anywhere_leaves_a_pool_that_decodes_with_all_its_decoders(is_warm, threads):
    with opened(2) as pool:
        number = 1
        while True:
            if not is_warm:
                pool.close()
            was_interrupted = is_interrupted_after(number, lambda: pool.decode(encoded(9, 9), PATIENT))
            wait_until(lambda: not pool.num_decoding and not pool.num_waiting)
            decoded = [threads.submit(pool.decode, encoded(), PATIENT) for _ in range(2)]
            assert [future.result(PATIENCE_S)[:2] for future in decoded] == [(4, 2)] * 2
            if not was_interrupted:
                break
            number += 1
        assert number > 10


def test_after_close_no_process_runs_and_the_next_picture_starts_one(threads):
    with opened(2) as pool:
        _, held = occupy(pool, threads)
        pool.decode(encoded(), PATIENT)
        pool.close()
        with pytest.raises(CapacityError, match="ended from outside"):
            held.result(PATIENCE_S)
        wait_until(lambda: not pool.num_decoding)
        assert not pool.process_ids
        assert pool.decode(encoded(), PATIENT)[:2] == (4, 2)
        assert len(pool.process_ids) == 1
