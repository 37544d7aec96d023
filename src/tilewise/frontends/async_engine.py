"""An engine for an event loop: from messages to streams of answers, with a bounded queue.

Requests are built in a thread pool and answers detokenised on the engine's thread, so the loop only passes pieces
on. What is admitted is counted until its end, whoever leaves meanwhile: opened and ended become equal once all is
quiet.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from tilewise.engine.launch import Engine
from tilewise.errors import CapacityError, EngineError, InputError, QueueFullError, TilewiseError
from tilewise.frontends.answers import Answer, create_jobs
from tilewise.frontends.metrics import Metrics
from tilewise.inputs.conversation import Message
from tilewise.inputs.request import RequestBuilder
from tilewise.types import FinishReason, GenerationConfig, Response, StepOutput

logger = logging.getLogger(__name__)

# Most of a build's time goes to waiting for a picture's host or decoder.
_NUM_BUILDERS = 32
_STALE_HEARTBEAT_S = 10.0

Piece = tuple[int, Response | TilewiseError]


class Stream:
    """The choices of one request as they grow; close it, or use it in `with`. For one reader, on the loop."""

    def __init__(self, engine: "AsyncEngine", num_choices: int) -> None:
        """Made by `AsyncEngine.open`."""
        self.opened_at = time.perf_counter()
        self.is_closed = False
        self.request_ids: list[str] = []
        self.pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._engine, self._num_left = engine, num_choices

    async def __aiter__(self) -> AsyncIterator[tuple[int, Response]]:
        """Yield (choice, piece) until every choice had its last one, which has a `finish_reason`.

        Raises:
            EngineError: the engine failed on this request, or is gone.
            CapacityError: the server ends, and the answer with it.
        """
        while self._num_left:
            index, piece = await self.pieces.get()
            if isinstance(piece, TilewiseError):
                raise piece
            if piece.finish_reason == FinishReason.ABORT:
                raise CapacityError("The server is shutting down and could not finish the answer; ask again.")
            self._num_left -= piece.finish_reason is not None
            yield index, piece

    def close(self) -> None:
        """Abort what still runs; what is still being built is not started."""
        self.is_closed = True
        if self._num_left:
            self._engine.abort(self.request_ids)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Choice:
    """One answer of a stream; `take` is the engine's to call."""

    def __init__(self, engine: "AsyncEngine", stream: Stream, index: int, answer: Answer) -> None:
        self._engine, self._stream, self._index, self._answer = engine, stream, index, answer
        self._num_shown = 0
        self._last_at: float | None = None

    def take(self, output: StepOutput) -> None:
        """Pass on what a step added; an answer that met a stop word is over, though the engine may say more."""
        engine, answer = self._engine, self._answer
        piece = self._read(output) if answer.finish_reason is None else None
        if output.finish_reason is not None:  # room is given back before a reader can ask for it
            self._end(answer.finish_reason or output.finish_reason)
        elif answer.finish_reason is not None and piece is not None:
            engine.abort([answer.request_id])
        if piece is not None:
            engine.post(self._stream, (self._index, piece))

    def _read(self, output: StepOutput) -> Response | TilewiseError:
        answer, now, metrics = self._answer, time.perf_counter(), self._engine.metrics
        if output.token_ids:
            if self._last_at is None:
                metrics.first_token_s.observe(now - self._stream.opened_at)
            else:
                metrics.inter_token_s.observe(now - self._last_at)
            self._last_at = now
        try:
            piece = answer.step_response(answer.push(output), self._num_shown)
        except TilewiseError as error:
            return error
        except Exception:
            logger.exception("an answer failed")
            return EngineError("The answer could not be read; the server's log says why.")
        self._num_shown = len(answer.token_ids)
        return piece

    def _end(self, reason: FinishReason) -> None:
        metrics, usage = self._engine.metrics, self._answer.usage
        metrics.count_finished(reason.value)
        metrics.request_s.observe(time.perf_counter() - self._stream.opened_at)
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.generation_tokens.inc(usage.completion_tokens)
        self._engine.end(1)


class AsyncEngine:
    """The door to an engine for one event loop. While there is no engine yet, requests are told to come back."""

    def __init__(
        self, engine: Engine | None, builder: RequestBuilder, *, max_queued: int = 256, model_name: str = "tilewise"
    ) -> None:
        """`builder` is the model's; `max_queued` answers may wait beside those that the engine runs at once."""
        self.engine: Engine | None = None
        self.builder = builder
        self.is_draining = False
        self.num_open = 0
        self.metrics = Metrics(model_name, self.stats)
        self._max_open = max_queued
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_NUM_BUILDERS, "tilewise-build")
        self._posted: deque[tuple[Stream, Piece]] = deque()
        self._is_woken = False
        self._loop: asyncio.AbstractEventLoop
        if engine is not None:
            self.attach(engine)

    def attach(self, engine: Engine) -> None:
        """Take requests from now on; `close` ends the engine."""
        resolved = engine.resolved
        self.builder = replace(self.builder, model=resolved.model, session_len=resolved.session_len)
        self._max_open += resolved.max_batch_size
        self.engine = engine

    async def open(
        self, messages: tuple[Message, ...], generation: GenerationConfig, namespace: str = "", *, is_raw: bool = False
    ) -> Stream:
        """Build and submit `generation.n` choices; `is_raw` leaves the chat template out.

        Raises:
            InputError: the request is refused.
            CapacityError: as `check_room`.
        """
        num_choices, builder = generation.n, self.builder
        self.check_room(num_choices)
        if is_raw:
            bare = replace(builder.profile, meta_instruction="", system="", user="", assistant="", turn_end="")
            builder = replace(builder, profile=bare)
        self._loop = asyncio.get_running_loop()
        stream = Stream(self, num_choices)
        with self._lock:
            self.num_open += num_choices
        self.metrics.opened.inc(num_choices)

        building = self._pool.submit(self._start, stream, builder, messages, generation, namespace)
        # A build that is cancelled before a thread took it never runs.
        building.add_done_callback(lambda future: self.end(num_choices) if future.cancelled() else None)
        try:
            await asyncio.wrap_future(building)
        except BaseException:
            stream.close()
            raise
        return stream

    def check_room(self, num_choices: int = 1) -> None:
        """Refuse what cannot be taken now.

        Raises:
            InputError: it could never be taken.
            QueueFullError: too many wait already.
            CapacityError: the engine is loading, ending or gone.
        """
        if self.engine is None:
            raise CapacityError("The model is still loading; try again in a moment.")
        if self.is_draining:
            raise CapacityError("The server is shutting down; send the request to another, or later.")
        if not self.engine.client.is_alive():
            raise CapacityError("The engine stopped; the server must be started again.")
        if num_choices > self._max_open:
            raise InputError(f"n is {num_choices}; this server takes {self._max_open} answers at once.", param="n")
        if self.num_open + num_choices > self._max_open:
            raise QueueFullError(f"{self.num_open} answers are under way, and no more may wait; try again later.")

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
        """Take nothing more, and wait until what runs has ended or the time is up."""
        self.is_draining = True
        deadline = time.monotonic() + timeout_s
        while self.num_open and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """End the engine, and with it what runs."""
        self.is_draining = True
        if self.engine is not None:
            self.engine.client.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def abort(self, request_ids: list[str]) -> None:
        """Ask the engine to end these, if they still run."""
        if self.engine is not None:
            for request_id in request_ids:
                self.engine.client.abort(request_id)

    def end(self, num_choices: int) -> None:
        """Count choices as ended; of any thread."""
        with self._lock:
            self.num_open -= num_choices
        self.metrics.ended.inc(num_choices)

    def post(self, stream: Stream, piece: Piece) -> None:
        """Hand a piece to a stream's reader, from the engine's thread; the loop is woken once for many."""
        self._posted.append((stream, piece))
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False  # NOTE: first, so that what is posted from here on wakes the loop again
        while self._posted:
            stream, piece = self._posted.popleft()
            stream.pieces.put_nowait(piece)

    def _start(
        self,
        stream: Stream,
        builder: RequestBuilder,
        messages: tuple[Message, ...],
        generation: GenerationConfig,
        namespace: str,
    ) -> None:
        """Build and submit, on a thread of the pool; every choice that is not submitted ends here."""
        assert self.engine is not None
        num_submitted = 0
        try:
            if not stream.is_closed:
                with self.metrics.build_s.time():
                    jobs = create_jobs(builder.build(messages, generation, "", namespace), builder)
                for index, (request, answer) in enumerate(jobs):
                    if stream.is_closed:
                        break
                    stream.request_ids.append(request.request_id)
                    self.engine.client.submit(request, _Choice(self, stream, index, answer).take)
                    num_submitted += 1
        finally:
            self.end(generation.n - num_submitted)
        if stream.is_closed:  # perhaps before it knew of these
            stream.close()
