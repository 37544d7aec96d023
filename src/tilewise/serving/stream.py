"""The way back: what the engine says of a request, on its way to its reader on the event loop.

    engine's thread            | event loop
    StreamedChoice.take -> Mailbox | StreamedChoice.read -> Stream -> the route that reads it

What the engine says is detokenised on the loop, all of a step at one wake-up: done on the engine's thread, the two
threads take the interpreter from each other at every piece.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Protocol

from tilewise.answers import Answer
from tilewise.errors import CapacityError, EngineError, TilewiseError
from tilewise.serving.metrics import Metrics
from tilewise.types import FinishReason, Response, StepOutput

logger = logging.getLogger(__name__)

Piece = tuple[int, Response | TilewiseError]


class StreamOwner(Protocol):
    """What streams ask of the engine that opened them."""

    metrics: Metrics
    mailbox: "Mailbox"

    def abort(self, request_ids: list[str]) -> None:
        """Ask the engine to end these, if they still run."""

    def end(self, stream: "Stream", num_choices: int) -> None:
        """Count choices as ended; of any thread."""


class Stream(AbstractContextManager["Stream"]):
    """The choices of one request as they grow; close it, or use it in `with`. For one reader, on the loop.

    Pieces wait for their reader, or the reader for them, without asyncio's queue, which costs twice as much a piece.
    """

    def __init__(self, owner: StreamOwner, num_choices: int, namespace: str = "") -> None:
        """Made by `owner`, which opens it for the API key of `namespace`."""
        self.opened_at = time.perf_counter()
        self.is_closed = False
        self.request_ids: list[str] = []
        self.namespace = namespace
        self.num_open, self.num_unsubmitted = num_choices, num_choices
        self.num_pixel_bytes, self.work = 0, 0
        self._owner, self._num_left = owner, num_choices
        self._waiting: deque[Piece] = deque()
        self._reader: asyncio.Future[None] | None = None

    @property
    def is_read(self) -> bool:
        """The reader has all there is."""
        return not self._waiting

    def put(self, piece: Piece) -> None:
        """Add a piece, on the reader's loop."""
        self._waiting.append(piece)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Response]]:
        """Yield (choice, piece) until every choice had its last one, which has a `finish_reason`.

        Raises:
            EngineError: the engine failed on this request, or is gone.
            CapacityError: the server ends, and the answer with it.
        """
        while self._num_left:
            while not self._waiting:
                self._reader = asyncio.get_running_loop().create_future()
                await self._reader
            index, piece = self._waiting.popleft()
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
            self._owner.abort(self.request_ids)

    def __exit__(self, *_: object) -> None:
        self.close()


class StreamedChoice:
    """One answer of a stream, from the engine's outputs to pieces of text."""

    def __init__(self, owner: StreamOwner, stream: Stream, index: int, answer: Answer) -> None:
        """Choice number `index` of `stream`."""
        self._owner, self._stream, self._index, self._answer = owner, stream, index, answer
        self._last_at: float | None = None

    def take(self, output: StepOutput) -> None:
        """Hand what a step added to the loop, from the engine's thread."""
        if output.finish_reason is not None:  # room is given back before a reader can ask for it
            self._owner.end(self._stream, 1)
        self._owner.mailbox.post(self, output)

    def read(self, output: StepOutput) -> None:
        """Pass it on as text; an answer that met a stop word is over, though the engine may say more."""
        answer = self._answer
        was_over = answer.finish_reason is not None
        piece = None if was_over else self._read(output)
        if output.finish_reason is not None:
            self._count(answer.finish_reason or output.finish_reason)
        elif answer.finish_reason is not None and not was_over:
            self._owner.abort([answer.request_id])
        if piece is not None:
            self._stream.put((self._index, piece))

    def _read(self, output: StepOutput) -> Response | TilewiseError:
        answer, now, metrics = self._answer, time.perf_counter(), self._owner.metrics
        if output.token_ids:
            if self._last_at is None:
                metrics.first_token_s.observe(now - self._stream.opened_at)
            else:
                metrics.inter_token_s.observe(now - self._last_at)
            self._last_at = now
        try:
            return answer.step_response(answer.push(output))
        except TilewiseError as error:
            return error
        except Exception:
            logger.exception("an answer failed")
            return EngineError("The answer could not be read; the server's log says why.")

    def _count(self, reason: FinishReason) -> None:
        metrics, usage = self._owner.metrics, self._answer.usage
        metrics.count_finished(reason.value)
        metrics.request_s.observe(time.perf_counter() - self._stream.opened_at)
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.generation_tokens.inc(usage.completion_tokens)


class Mailbox:
    """Outputs on their way from the engine's thread to the loop, which is woken once for many."""

    def __init__(self) -> None:
        """Belong to no loop yet."""
        self._posted: deque[tuple[StreamedChoice, StepOutput]] = deque()
        self._is_woken = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake this loop from now on."""
        if self._loop is not loop:
            self._loop, self._is_woken = loop, False

    def post(self, choice: StreamedChoice, output: StepOutput) -> None:
        """Hand an output over, from the engine's thread."""
        self._posted.append((choice, output))
        if not self._is_woken and self._loop is not None:
            self._is_woken = True
            try:
                self._loop.call_soon_threadsafe(self._read)
            except RuntimeError:  # the loop has ended, and with it every reader
                self._posted.clear()

    def _read(self) -> None:
        self._is_woken = False  # NOTE: first, so that what is posted from here on wakes the loop again
        while self._posted:
            choice, output = self._posted.popleft()
            choice.read(output)
