"""A machine that runs a scheduler's plans on fingerprints instead of tensors, and believes nothing it is told.

Every KV slot holds the fingerprint of the whole prefix that its keys would depend on, every tile row says which
tile it holds, and the next token is a function of the fingerprint. So a slot that was never written, was
overwritten, or belongs to another prefix, picture or namespace changes the answer and is found at once.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tilewise.scheduling.scheduler import Scheduler
from tilewise.scheduling.steps import Budgets, Chunk, Sampled, StepPlan
from tilewise.types import FinishReason, GenerationConfig, ImageSpan, PreparedImage, Request, StepOutput

PER_TILE = 3
IMAGE_ID = 7
STOP_ID = 9
NUM_TOKENS = 10
PICTURES = tuple(
    PreparedImage(28 * columns, 28, b"", columns, 1, False, digest=bytes([number]) * 32)
    for number, columns in enumerate((1, 2, 4))
)
GARBAGE = -1


def make_request(
    request_id: str,
    parts: Sequence[int | PreparedImage],
    *,
    namespace: str = "",
    max_new_tokens: int = 4,
    stop_token_ids: tuple[int, ...] = (STOP_ID,),
    is_streamed: bool = True,
) -> Request:
    """A prompt of ids and pictures, in order."""
    token_ids: list[int] = []
    spans: list[ImageSpan] = []
    images = tuple(part for part in parts if isinstance(part, PreparedImage))
    for part in parts:
        if isinstance(part, int):
            token_ids.append(part)
            continue
        start = len(token_ids)
        token_ids += [IMAGE_ID] * (part.num_tiles * PER_TILE)
        spans.append(ImageSpan(start, len(token_ids), len(spans)))
    generation = GenerationConfig(max_new_tokens=max_new_tokens)
    return Request(
        request_id, tuple(token_ids), tuple(spans), images, generation, stop_token_ids, namespace, is_streamed
    )


def read_inputs(request: Request) -> list[int | tuple[bytes, int, int]]:
    """What the decoder sees at each prompt position: a token id, or (picture, tile, place in the tile)."""
    inputs: list[int | tuple[bytes, int, int]] = list(request.token_ids)
    for span in request.spans:
        digest = request.images[span.image].digest
        for position in range(span.start, span.end):
            inputs[position] = (digest, *divmod(position - span.start, PER_TILE))
    return inputs


def fingerprint(parent: int, value: object) -> int:
    return hash((parent, value))


def next_token(state: int) -> int:
    return state % NUM_TOKENS


def answer_alone(request: Request, session_len: int) -> tuple[list[int], FinishReason]:
    """The answer by definition: no blocks, no chunks, no company."""
    state = hash(request.namespace)
    for value in read_inputs(request):
        state = fingerprint(state, value)
    room = min(request.generation.max_new_tokens, session_len - len(request.token_ids))
    answer: list[int] = []
    while len(answer) < room:
        answer.append(next_token(state))
        if answer[-1] in request.stop_token_ids:
            return answer, FinishReason.STOP
        state = fingerprint(state, answer[-1])
    return answer, FinishReason.LENGTH


@dataclass
class Told:
    """What a client heard of its request."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    reason: FinishReason | None = None


class Simulation:
    """A scheduler, the device's memory, and the clients."""

    def __init__(self, budgets: Budgets, num_blocks: int, num_tile_rows: int) -> None:
        self.budgets = budgets
        self.scheduler = Scheduler(budgets, num_blocks, num_tile_rows)
        self.told: dict[str, Told] = {}
        self.flying: deque[tuple[StepPlan, dict[int, Sampled]]] = deque()
        self.slots = [GARBAGE] * (num_blocks * budgets.block_size)
        self.rows: list[tuple[bytes, int] | None] = [None] * num_tile_rows
        self.num_steps = 0
        self.cutting: deque[bytes] = deque()
        self.unready: list[str] = []
        self._cut: set[bytes] = set()
        self._requests: dict[int, Request] = {}
        self._inputs: dict[int, list[int | tuple[bytes, int, int]]] = {}
        self._next: dict[int, int] = {}  # where each running sequence's next chunk must start

    @property
    def open_ids(self) -> list[str]:
        return [request_id for request_id, told in self.told.items() if told.reason is None]

    def add(self, request: Request, *, is_ready: bool = True) -> None:
        self.told[request.request_id] = Told(request)
        self.scheduler.add(request, is_ready=is_ready)
        self.unready += [] if is_ready else [request.request_id]
        self.check()

    def mark_ready(self) -> None:
        """The oldest request that is not ready becomes so, if it is still here."""
        request_id = self.unready.pop(0)
        is_here = self.told[request_id].reason is None
        assert self.scheduler.mark_ready(request_id) == is_here
        self.check()

    def cut(self) -> None:
        """The picture that is cut is done."""
        digest = self.cutting.popleft()
        assert self.scheduler.cuts.mark_ready(digest)
        self._cut.add(digest)
        self.check()

    def refuse_image(self) -> None:
        """The picture that is cut cannot be."""
        self._hear(self.scheduler.refuse_image(self.cutting.popleft(), "uncuttable"))
        self.check()

    def schedule(self) -> StepPlan | None:
        """Plan a step and run it at once: a device runs steps in the order of their planning."""
        plan = self.scheduler.schedule()
        for digest in self.scheduler.cuts.take_dropped():
            self._cut.discard(digest)
            with suppress(ValueError):
                self.cutting.remove(digest)
        self.cutting += (image.digest for image in self.scheduler.cuts.take_wanted())
        for sequence in self.scheduler.waiting:
            self._next.pop(sequence.id, None)
        if plan is not None:
            self._check_budgets(plan)
            self.num_steps += 1
            self._requests.update(plan.admitted)
            self._inputs.update((sequence_id, read_inputs(request)) for sequence_id, request in plan.admitted)
            for sequence_id in plan.released:
                self._requests.pop(sequence_id, None)
                self._next.pop(sequence_id, None)
            self.flying.append((plan, self._run(plan)))
        else:
            waits = self.flying or self.unready or self.cutting
            assert not self.scheduler.has_work or waits, "requests wait and nothing is done"
        self.check()
        return plan

    def commit(self) -> None:
        plan, sampled = self.flying.popleft()
        self._hear(self.scheduler.commit(plan, sampled))
        self.check()

    def fail(self) -> None:
        """The device broke: every step in flight is lost, and its memory holds whatever it held."""
        while self.flying:
            plan, _ = self.flying.popleft()
            for job in plan.tiles:
                self.rows[job.row] = None
            for slot in (slot for chunk in plan.chunks for slot in self._slots_of(chunk)):
                self.slots[slot] = GARBAGE
            self._hear(self.scheduler.fail(plan, "broken"))
            self.check()

    def abort(self, request_id: str) -> None:
        output = self.scheduler.abort(request_id)
        assert (output is None) == (self.told[request_id].reason is not None)
        self._hear([output] if output else [])
        self.check()

    def drain(self) -> None:
        """Work until nothing is left, within a bound; then everything must have been given back."""
        work = sum(
            len(told.request.token_ids) + told.request.generation.max_new_tokens
            for told in self.told.values()
            if told.reason is None
        )
        bound = self.num_steps + (work + 1) * (len(self.open_ids) + 1)
        while self.scheduler.has_work or self.flying:
            planned = self.schedule()
            assert planned or self.flying or self.cutting or self.unready, "requests wait and nothing is done"
            if self.flying:
                self.commit()
            elif self.cutting:
                self.cut()
            elif self.unready:
                self.mark_ready()
            assert self.num_steps <= bound, "somebody starves"
        assert not self.open_ids
        assert self.scheduler.kv.pool.num_held == 0
        assert self.scheduler.kv.pool.num_available == self.scheduler.kv.pool.num_blocks
        self.scheduler.check_integrity()  # with nobody left it also finds a digest that is kept

    def check(self) -> None:
        self.scheduler.check_integrity()
        if not self.scheduler.has_work:
            assert len(self.scheduler.shares) == 0, "an account is kept of nobody"

    def _hear(self, outputs: Iterable[StepOutput]) -> None:
        for output in outputs:
            told = self.told[output.request_id]
            assert told.reason is None, "heard of a request that had ended"
            told.token_ids += output.token_ids
            told.reason = output.finish_reason
            expected, reason = answer_alone(told.request, self.budgets.session_len)
            assert told.token_ids == expected[: len(told.token_ids)], "the answer depends on company"
            if told.reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert (told.token_ids, told.reason) == (expected, reason)
            elif told.reason is None:
                assert len(told.token_ids) < len(expected), "an answer goes on after its end"

    def _check_budgets(self, plan: StepPlan) -> None:
        assert sum(chunk.num_tokens for chunk in plan.chunks) <= self.budgets.max_step_tokens
        assert len(plan.tiles) <= self.budgets.max_step_tiles
        images = {job.image.digest: job.image.num_pixels for job in plan.tiles}
        assert self._cut >= {digest for digest, size in images.items() if size > self.budgets.max_step_pixels}
        cut_inside = [size for size in images.values() if size <= self.budgets.max_step_pixels]
        assert sum(cut_inside) <= self.budgets.max_step_pixels
        assert len({chunk.sequence_id for chunk in plan.chunks}) == len(plan.chunks) <= self.budgets.max_sequences
        assert all(chunk.num_tokens == 1 and chunk.is_sampled for chunk in plan.decodes)
        assert all(chunk.num_tokens > 0 and chunk.token_ids is not None for chunk in plan.prefills)
        is_watched = any(self._requests[chunk.sequence_id].is_streamed for chunk in plan.decodes)
        if is_watched and self.budgets.max_busy_work is not None:
            bound = max(self.budgets.tokens_per_tile, self.budgets.max_busy_work - len(plan.decodes))
            num_tokens = sum(chunk.num_tokens for chunk in plan.prefills)
            assert num_tokens <= bound
            assert len(plan.tiles) <= 1 or num_tokens + len(plan.tiles) * self.budgets.tile_work <= bound

    def _slots_of(self, chunk: Chunk) -> list[int]:
        size = self.budgets.block_size
        return [chunk.blocks[p // size] * size + p % size for p in range(chunk.start, chunk.end)]

    def _run(self, plan: StepPlan) -> dict[int, Sampled]:
        for job in plan.tiles:
            self.rows[job.row] = (job.image.digest, job.tile)
        assert len({job.row for job in plan.tiles}) == len(plan.tiles), "two tiles in one row"
        written = [slot for chunk in plan.chunks for slot in self._slots_of(chunk)]
        assert len(set(written)) == len(written), "two sequences write one slot"
        holders = [block for sequence in self.scheduler.running for block in sequence.blocks]
        for block in {slot // self.budgets.block_size for slot in written}:
            assert holders.count(block) == 1, "a shared block is written"
            assert not self.scheduler.kv.prefix.is_identified(block), "a block with an identity is written"
        return {
            chunk.sequence_id: Sampled(token)
            for chunk in plan.chunks
            for token in [self._compute(chunk)]
            if chunk.is_sampled
        }

    def _compute(self, chunk: Chunk) -> int:
        """Check the chunk's whole context, write its slots, and return the token that follows."""
        size, inputs = self.budgets.block_size, self._inputs[chunk.sequence_id]
        first = self._next.get(chunk.sequence_id)
        assert chunk.start == first or (first is None and chunk.start % size == 0), "a position is skipped or repeated"
        self._next[chunk.sequence_id] = chunk.end
        assert len(set(chunk.blocks)) == len(chunk.blocks) >= -(-chunk.end // size)
        assert chunk.end <= self.budgets.session_len
        if chunk.token_ids is None:
            assert len(inputs) == chunk.end, "the token on the device is not the newest"
        pictures = self._read_pictures(chunk)
        state = hash(self._requests[chunk.sequence_id].namespace)
        for position in range(chunk.end):
            slot = chunk.blocks[position // size] * size + position % size
            value = inputs[position]
            if position < chunk.start:
                state = fingerprint(state, value)
                assert self.slots[slot] == state, "the context is not this sequence's"
                continue
            if chunk.token_ids is not None and isinstance(value, int):
                assert chunk.token_ids[position - chunk.start] == value
            assert pictures.get(position) == (None if isinstance(value, int) else value), "a tile is not in place"
            state = self.slots[slot] = fingerprint(state, value)
        token = next_token(state)
        if chunk.is_sampled:
            assert len(inputs) == chunk.end, "sampled before the end"
            inputs.append(token)
        return token

    def _read_pictures(self, chunk: Chunk) -> dict[int, tuple[bytes, int, int]]:
        found: dict[int, tuple[bytes, int, int]] = {}
        for piece in chunk.image_rows:
            assert chunk.start <= piece.start < piece.end <= chunk.end
            for position in range(piece.start, piece.end):
                row, place = divmod(piece.first_row + position - piece.start, PER_TILE)
                tile = self.rows[row]
                assert tile is not None, "a tile is used that was never encoded"
                assert position not in found
                found[position] = (*tile, place)
        return found
