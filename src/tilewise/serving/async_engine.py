"""An engine for an event loop: from messages to streams of answers, with a bounded queue.

Requests are built on threads, those with pictures on threads of their own: text waits for no picture's host. What is
admitted is counted until its end, also when its client leaves: opened and ended become equal once all is quiet. It
counts as what it costs: answers at once; tokens, tiles and source pixels once it is built. Where several API keys share
a server, each holds only a part of that room, and of the threads (`room`), so that one's flood refuses itself alone.
What the engine says comes back through `stream`.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from tilewise.answers import create_jobs
from tilewise.engine.launch import Engine
from tilewise.errors import CapacityError, InputError, QueueFullError
from tilewise.inputs.conversation import Message
from tilewise.inputs.media.fetch_context import use_fetch_context
from tilewise.inputs.request_builder import RequestBuilder
from tilewise.plan import count_tile_work
from tilewise.room import SharedRoom
from tilewise.serving.metrics import Metrics
from tilewise.serving.stream import Mailbox, Stream, StreamedChoice
from tilewise.threads import DaemonThreads
from tilewise.types import GenerationConfig, Request

# Most of a build's time goes to waiting: for a schema's compiler, a picture's host or decoder. Each of the latter may
# hold the pixels of a request, too.
_NUM_BUILDERS, _NUM_PICTURE_BUILDERS = 32, 16
_MAX_PIXEL_BYTES = 4 << 30
_STALE_HEARTBEAT_S = 10.0

T = TypeVar("T")


class AsyncEngine:
    """An engine as one event loop sees it. While there is no engine yet, requests are told to come back."""

    def __init__(
        self,
        builder: RequestBuilder,
        *,
        max_queued: int = 256,
        max_pixel_bytes: int = _MAX_PIXEL_BYTES,
        is_shared: bool = False,
        model_name: str = "tilewise",
    ) -> None:
        """`builder` is the model's; `max_queued` answers may wait beside those that the engine runs at once.

        The pictures of what is under way may take `max_pixel_bytes` together; one request may always bring its own.
        `is_shared` is for several API keys: each holds a part of all that, and of the work of as many prompts with one
        picture in as many tiles as the model takes.
        """
        self.engine: Engine | None = None
        self.builder = builder
        self.is_draining = False
        self.metrics = Metrics(model_name, self.stats)
        self.mailbox = Mailbox()
        self._answers = SharedRoom(max_queued, is_shared=is_shared)
        self._pixel_bytes = SharedRoom(max_pixel_bytes, is_shared=is_shared)
        self._tile_work = count_tile_work(builder.model)
        self._work = SharedRoom(max_queued * self._count_ordinary_work(), is_shared=is_shared)
        self._lock = threading.Lock()
        self._text_threads = DaemonThreads(_NUM_BUILDERS, "tilewise-build", is_shared=is_shared)
        self._picture_threads = DaemonThreads(_NUM_PICTURE_BUILDERS, "tilewise-pictures", is_shared=is_shared)
        self._preparing: set[asyncio.Future[Any]] = set()

    def attach(self, engine: Engine) -> None:
        """Take requests from now on; `close` ends the engine."""
        resolved = engine.resolved
        self.builder = replace(self.builder, model=resolved.model, session_len=resolved.session_len)
        self._answers.capacity += resolved.max_batch_size
        self._work.capacity = self._answers.capacity * self._count_ordinary_work()
        self.engine = engine

    @property
    def num_open(self) -> int:
        """Answers under way."""
        return self._answers.total

    async def open(
        self,
        messages: tuple[Message, ...],
        generation: GenerationConfig,
        namespace: str = "",
        *,
        is_raw: bool = False,
        is_streamed: bool = True,
    ) -> Stream:
        """Build and submit `generation.n` choices; `is_raw` leaves the chat template out.

        `is_streamed` is for who reads the pieces as they come, and not only their sum.

        Raises:
            InputError: the request is refused.
            CapacityError: as `check_room`.
        """
        builder = self.builder
        self.check_room(namespace, generation.n)
        if is_raw:
            bare = replace(builder.profile, meta_instruction="", system="", user="", assistant="", turn_end="")
            builder = replace(builder, profile=bare)
        stream = Stream(self, generation.n, namespace)

        def build_and_submit() -> None:
            if stream.is_closed:
                return
            with self.metrics.build_s.time():
                request = builder.build(messages, generation, "", namespace)
            self._submit(stream, builder, replace(request, is_streamed=is_streamed))

        await self._run(stream, messages, build_and_submit)
        return stream

    async def build(self, messages: tuple[Message, ...], generation: GenerationConfig, namespace: str = "") -> Request:
        """Build a request that nobody answers; it takes the room of an answer meanwhile.

        Raises:
            InputError: the request is refused.
            CapacityError: as `check_room`.
        """
        self.check_room(namespace)
        stream = Stream(self, 1, namespace)
        return await self._run(stream, messages, lambda: self.builder.build(messages, generation, "", namespace))

    async def _run(self, stream: Stream, messages: tuple[Message, ...], work: Callable[[], T]) -> T:
        """Count a stream as open and do its work on a thread; whatever is not submitted there ends with it."""
        self.mailbox.bind(asyncio.get_running_loop())
        num_choices, limits = stream.num_open, self.builder.policy.limits
        with self._lock:
            self._answers.take(stream.namespace, num_choices)
        self.metrics.opened.inc(num_choices)

        def run() -> T:
            with use_fetch_context(limits.fetch_timeout_s, lambda: not stream.is_closed, self.metrics.observe_stage):
                try:
                    return work()
                finally:
                    self.end(stream, stream.num_unsubmitted)

        has_pictures = any(message.images for message in messages)
        threads = self._picture_threads if has_pictures else self._text_threads
        running = threads.submit(run, stream.namespace)
        # What is cancelled before a thread took it never runs.
        running.add_done_callback(lambda future: self.end(stream, num_choices) if future.cancelled() else None)
        try:
            return await self.until_drained(asyncio.wrap_future(running))
        except BaseException:
            stream.close()
            raise
        finally:
            del running

    async def until_drained(self, work: asyncio.Future[T]) -> T:
        """Wait for what a request needs before it can be asked; a drain waits for it too, and gives it up at its end.

        Raises:
            CapacityError: the drain has ended.
        """
        self._preparing.add(work)
        try:
            return await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():  # by who waits, not by the drain
                raise
            raise CapacityError("The server is shutting down and could not take the request; ask again.") from None
        finally:
            self._preparing.discard(work)
            del work  # NOTE: an error's frames hold it in a ring otherwise, and with it a body, until Python collects

    def check_room(self, namespace: str = "", num_choices: int = 1) -> None:
        """Refuse what cannot be taken now.

        Raises:
            InputError: it could never be taken.
            QueueFullError: too many wait already, or too many of this API key's.
            CapacityError: the engine is loading, ending or gone.
        """
        if self.engine is None:
            raise CapacityError("The model is still loading; try again in a moment.")
        if self.is_draining:
            raise CapacityError("The server is shutting down; send the request to another, or later.")
        if not self.engine.client.is_alive():
            raise CapacityError("The engine stopped; the server must be started again.")
        most = self._answers.capacity
        if num_choices > most:
            raise InputError(f"n is {num_choices}; this server takes {most} answers at once.", param="n")
        with self._lock:
            self._check_fits(self._answers, namespace, num_choices, _show_answers)

    def stats(self) -> Mapping[str, float]:
        """The engine's counters, never waiting for it; nothing before there is one."""
        return self.engine.client.stats() if self.engine else {}

    @property
    def is_healthy(self) -> bool:
        """The engine lives and its heartbeat is fresh, or it is being loaded."""
        is_fresh = self.stats().get("heartbeat_age_s", 0.0) < _STALE_HEARTBEAT_S
        return self.engine is None or (is_fresh and self.engine.client.is_alive())

    @property
    def is_ready(self) -> bool:
        """New requests are taken."""
        return self.engine is not None and not self.is_draining and self.is_healthy

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, and wait until all is quiet or the time is up; then give up what has not begun to run."""
        self.is_draining = True
        deadline = time.monotonic() + timeout_s
        while (self.num_open or self._preparing) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for work in self._preparing:
            work.cancel()

    def close(self) -> None:
        """End the engine, and with it what runs."""
        self.is_draining = True
        if self.engine is not None:
            self.engine.client.close()
        self._text_threads.close()
        self._picture_threads.close()

    def abort(self, request_ids: list[str]) -> None:
        """Ask the engine to end these, if they still run."""
        if self.engine is not None:
            for request_id in request_ids:
                self.engine.client.abort(request_id)

    def end(self, stream: Stream, num_choices: int) -> None:
        """Count choices as ended, and the pictures that they share with the last of them; of any thread."""
        with self._lock:
            self._answers.give_back(stream.namespace, num_choices)
            stream.num_open -= num_choices
            if not stream.num_open:
                self._pixel_bytes.give_back(stream.namespace, stream.num_pixel_bytes)
                self._work.give_back(stream.namespace, stream.work)
                stream.num_pixel_bytes, stream.work = 0, 0
        self.metrics.ended.inc(num_choices)

    def _submit(self, stream: Stream, builder: RequestBuilder, request: Request) -> None:
        """Send the choices of a request to the engine, on the thread that built it."""
        assert self.engine is not None
        self._hold_cost(stream, request)
        jobs = create_jobs(request, builder)
        takers = [StreamedChoice(self, stream, index, answer).take for index, (_, answer) in enumerate(jobs)]
        (first, on_output), *more = [(own, take) for (own, _), take in zip(jobs, takers, strict=True)]
        if stream.is_closed:
            return
        stream.request_ids += [own.request_id for own, _ in jobs]
        self.engine.client.submit(first, on_output, more)
        stream.num_unsubmitted = 0
        if stream.is_closed:  # perhaps before it knew of these ids
            stream.close()

    def _hold_cost(self, stream: Stream, request: Request) -> None:
        """Count what a prompt costs, once for all choices, which share it.

        Raises:
            QueueFullError: its pictures find no room, or its key holds its share already.
        """
        namespace = stream.namespace
        num_pixel_bytes = sum(len(image.pixels) for image in request.images)
        work = len(request.token_ids) + self._tile_work * sum(image.num_tiles for image in request.images)
        with self._lock:
            if num_pixel_bytes:
                self._check_fits(self._pixel_bytes, namespace, num_pixel_bytes, _show_pixel_bytes)
            if not self._work.fits_share(namespace, work):
                raise _refuse_share(
                    f"Prompts of {self._work.held(namespace)} tokens (a tile is {self._tile_work} more)"
                )
            self._pixel_bytes.take(namespace, num_pixel_bytes)
            self._work.take(namespace, work)
            stream.num_pixel_bytes, stream.work = num_pixel_bytes, work

    def _count_ordinary_work(self) -> int:
        """Count what a prompt with one picture costs, in as many tiles as the model takes."""
        model = self.builder.model
        return (model.max_dynamic_patch + int(model.use_thumbnail)) * (model.tokens_per_tile + self._tile_work)

    def _check_fits(self, room: SharedRoom, namespace: str, amount: int, show: Callable[[int], str]) -> None:
        if not room.fits(amount):
            raise QueueFullError(f"{show(room.total)} are under way, and no more may wait; try again later.")
        if not room.fits_share(namespace, amount):
            raise _refuse_share(show(room.held(namespace)))


def _show_answers(number: int) -> str:
    return f"{number} answers"


def _show_pixel_bytes(number: int) -> str:
    return f"Pictures of {number >> 20} MiB"


def _refuse_share(held: str) -> QueueFullError:
    return QueueFullError(
        f"{held} of this API key are under way, and the room that is left is kept for other keys; try again once some "
        "of its own have ended."
    )
