"""Continuous batching with chunked prefill: which tokens and which tiles go into the next step.

Pure bookkeeping, no clock and no torch: a step is a function of the state and five budgets.

    budget   | spent on
    tokens   | first one a running decode, then prefill chunks, oldest request first; namespaces take turns (`shares`)
    tiles    | pictures of those chunks that no cache holds; a chunk ends where its tiles run out
    pixels   | the sources of those pictures that the step cuts itself; a larger one is cut before (`image_cuts`)
    work     | both of them, where a streamed answer decodes, or is awaited beside another namespace's prompts: no
             | reader waits long for another's picture
    blocks   | a prompt's blocks when it is admitted, one more whenever an answer outgrows its last

When blocks run out the youngest request, of the namespace that holds most, gives its own back and is computed again
later; so it does for a namespace that waits while another has a larger share. A step may be
scheduled before the one before it is committed: a token that is sampled but not yet known counts as
pending, and the runner takes it from the device, unless the next one depends on which it is.

A request that is not ready yet, because its answer's form is still compiled, waits outside the batch and lets others
pass.
"""

from bisect import insort
from collections.abc import Mapping

from tilewise.cache.tiles import TileCache
from tilewise.errors import ConfigError, InputError, PromptTooLongError
from tilewise.scheduling.image_cuts import ImageCuts
from tilewise.scheduling.kv_blocks import KvBlocks
from tilewise.scheduling.sequence import Sequence
from tilewise.scheduling.shares import Shares, Turns, Waiting, choose_loser, choose_victims, holds_most
from tilewise.scheduling.steps import Budgets, Chunk, ImageRows, Sampled, StepDraft, StepPlan, TileJob
from tilewise.types import FinishReason, PreparedImage, Request, StepOutput

COUNTERS = (
    *("requests_opened", "requests_ended", "steps", "preemptions", "prefix_queries", "prefix_hits"),
    *("tiles_encoded", "tokens_computed", "tokens_generated"),
)


class Scheduler:
    """Requests in, step plans out, results back in."""

    def __init__(self, budgets: Budgets, num_blocks: int, num_tile_rows: int) -> None:
        """Own the caches' bookkeeping.

        Raises:
            ConfigError: the pools could not serve one request alone.
        """
        self.budgets = budgets
        self.kv = KvBlocks(num_blocks, budgets.block_size, budgets.use_prefix_cache)
        if self.kv.count_for(budgets.session_len) > num_blocks or num_tile_rows < 1:
            raise ConfigError(
                f"{num_blocks} KV blocks of {budgets.block_size} tokens and {num_tile_rows} picture tiles are too "
                f"few for session_len={budgets.session_len}; lower session_len or give the caches more memory.",
                param="session_len",
            )
        self.tiles = TileCache(num_tile_rows)
        self.cuts = ImageCuts(budgets.max_cut_pixels, budgets.max_cut_tiles)
        self.unready: dict[str, Sequence] = {}
        self.waiting = Waiting()
        self.running: list[Sequence] = []
        self.shares = Shares()
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._by_request: dict[str, Sequence] = {}
        self._next_id = 0
        self._admitted: list[tuple[int, Request]] = []
        self._released: list[int] = []

    @property
    def has_work(self) -> bool:
        """Something waits or runs."""
        return bool(self._by_request)

    def add(self, request: Request, *, is_ready: bool = True) -> None:
        """Queue a request; one that is not ready waits for `mark_ready`.

        Raises:
            PromptTooLongError: the session length leaves no room for an answer.
        """
        room = self.budgets.session_len - len(request.token_ids)
        if room < 1:
            raise PromptTooLongError(
                f"The prompt has {len(request.token_ids)} tokens; session_len={self.budgets.session_len} "
                "must hold it and at least one more."
            )
        if request.request_id in self._by_request:
            raise InputError(f"Request {request.request_id!r} is already running.", param="request_id")
        sequence = Sequence(self._next_id, request, min(request.generation.max_new_tokens, room))
        self._next_id += 1
        self._by_request[request.request_id] = sequence
        if is_ready:
            self.waiting.append(sequence)
        else:
            self.unready[request.request_id] = sequence
        self.counters["requests_opened"] += 1

    def mark_ready(self, request_id: str) -> bool:
        """Let a request that was not ready wait for its turn; False if it is not here any more."""
        sequence = self.unready.pop(request_id, None)
        if sequence is not None:
            self.waiting.append(sequence)
        return sequence is not None

    def refuse(self, request_id: str, error: str) -> list[StepOutput]:
        """End a request that cannot become ready, if it is still here."""
        sequence = self._by_request.get(request_id)
        return [] if sequence is None else self._end_all([sequence], error)

    def find_oldest(self) -> str | None:
        """The id of the request that is here longest."""
        return next(iter(self._by_request), None)

    def refuse_image(self, digest: bytes, error: str) -> list[StepOutput]:
        """End all requests that still need a picture which could not be cut."""
        return self._end_all([s for s in self.running if s.needs_image(digest)], error)

    def abort(self, request_id: str) -> StepOutput | None:
        """End a request now; None if it is not here. A step in flight may still compute for it, unheard."""
        sequence = self._by_request.get(request_id)
        if sequence is None:
            return None
        self._end(sequence)
        return StepOutput(request_id, finish_reason=FinishReason.ABORT, cached_tokens=sequence.cached_tokens)

    def schedule(self) -> StepPlan | None:
        """Fill the next step; None if nothing can be computed now."""
        self.tiles.unpin()
        step = StepDraft(self.budgets)
        has_prompts = bool(self.waiting) or not all(sequence.is_decoding for sequence in self.running)
        if has_prompts:
            self.shares.begin_step(self.running, self.waiting)
            self._make_way(step)
        else:
            self.shares.clear()
        self._keep_cuts(has_prompts)
        for sequence in list(self.running):
            if sequence.is_decoding:  # one that was preempted meanwhile is not
                self._schedule_decode(sequence, step)
        if step.has_streams and self.budgets.max_busy_work is not None:
            least = self.budgets.tokens_per_tile  # however many decode, prompts go on
            step.work_left = max(least, self.budgets.max_busy_work - len(step.decodes))
        if has_prompts or step.has_preempted:
            self._schedule_prompts(step)
        if not step.decodes and not step.prefills:
            return None
        admitted, self._admitted = tuple(self._admitted), []
        released, self._released = tuple(self._released), []
        self.counters["steps"] += 1
        self.counters["tiles_encoded"] += len(step.tiles)
        self.counters["tokens_computed"] += sum(chunk.num_tokens for chunk in step.decodes + step.prefills)
        return StepPlan(
            self.counters["steps"],
            tuple(step.tiles),
            tuple(step.decodes),
            tuple(step.prefills),
            admitted,
            released,
            is_awaited=step.has_streams and bool(step.prefills) and any(s.request.namespace for s in self.running),
        )

    def commit(self, plan: StepPlan, sampled: Mapping[int, Sampled]) -> list[StepOutput]:
        """Take a step's results: `sampled` by sequence id. Sequences that ended meanwhile are passed over."""
        alive = {sequence.id: sequence for sequence in self._by_request.values()}
        outputs: list[StepOutput] = []
        for chunk in plan.chunks:
            sequence = alive.get(chunk.sequence_id)
            if sequence is None:
                continue
            if chunk.is_sampled:
                sequence.num_pending -= 1
                outputs.append(self._append(sequence, sampled[chunk.sequence_id]))
            self.kv.publish(sequence, min(chunk.end, sequence.num_scheduled))
        return outputs

    def fail(self, plan: StepPlan, error: str) -> list[StepOutput]:
        """End every request of a step that broke, and forget the tiles it should have encoded.

        A step planned after it may read what it did not write: fail that one too, even if it ran.
        """
        for job in plan.tiles:
            self.tiles.forget((job.namespace, job.image.digest, job.tile))
        ids = {chunk.sequence_id for chunk in plan.chunks}
        return self._end_all([sequence for sequence in self._by_request.values() if sequence.id in ids], error)

    def check_integrity(self) -> None:
        """Raise unless every request, block, digest and tile row is accounted for."""
        here = [*self.unready.values(), *self.waiting, *self.running]
        assert {s.id for s in here} == {s.id for s in self._by_request.values()}, "a request is lost"
        assert len(here) == len(self._by_request), "a request is in two places"
        assert len(self.running) <= self.budgets.max_sequences, "too many run"
        self.kv.check_integrity(here)
        self.tiles.check_integrity()
        self.cuts.check_integrity()
        opened, ended = self.counters["requests_opened"], self.counters["requests_ended"]
        assert opened == ended + len(here), "a request ended twice or never"
        assert all(bool(s.blocks) == (s in self.running) for s in here), "a waiting request holds blocks"

    def _schedule_decode(self, sequence: Sequence, step: StepDraft) -> None:
        position = sequence.num_scheduled
        known = position < len(sequence.token_ids)
        if not sequence.has_room or step.tokens_left < 1:
            return
        # Also where it decodes in every other step only: its reader waits for this one all the same.
        step.has_streams |= sequence.request.is_streamed
        if not known and sequence.request.generation.needs_known_tokens:
            return
        while not self.kv.grow(sequence, position + 1):
            victim = choose_loser(self.running, sequence)
            self._preempt(victim, step)
            if victim is sequence:
                return
        token_ids = (sequence.token_ids[position],) if known else None
        step.decodes.append(
            Chunk(sequence.id, position, position + 1, token_ids, tuple(sequence.blocks), is_sampled=True)
        )
        step.tokens_left -= 1
        self.shares.charge(sequence.request.namespace, 1)
        sequence.num_scheduled += 1
        sequence.num_pending += 1

    def _schedule_prompts(self, step: StepDraft) -> None:
        turns = Turns(self.shares, self.running, self.waiting)
        if turns.are_shared:
            step.work_left = min(step.work_left, self.budgets.max_shared_work)
        if step.has_preempted:
            turns.close()
        for sequence in turns:
            if sequence.blocks or self._admit(sequence, step, turns):
                self._schedule_prefill(sequence, step)

    def _schedule_prefill(self, sequence: Sequence, step: StepDraft) -> None:
        start = sequence.num_scheduled
        end = min(len(sequence.token_ids), start + step.token_room)
        end, rows = self._place_images(sequence, start, end, step)
        if end <= start:
            return
        is_last = end == len(sequence.token_ids)
        is_sampled = is_last and sequence.has_room
        blocks = tuple(sequence.blocks[: self.kv.count_for(end)])
        token_ids = tuple(sequence.token_ids[start:end])
        step.prefills.append(Chunk(sequence.id, start, end, token_ids, blocks, is_sampled, tuple(rows)))
        step.spend_tokens(end - start)
        self.shares.charge(sequence.request.namespace, end - start)
        sequence.num_scheduled = end
        sequence.num_pending += int(is_sampled)

    def _place_images(self, sequence: Sequence, start: int, end: int, step: StepDraft) -> tuple[int, list[ImageRows]]:
        """Find or reserve a row for every tile under [start, end); the chunk ends where that fails."""
        per_tile = self.budgets.tokens_per_tile
        rows: list[ImageRows] = []
        for span in sequence.request.spans:
            if span.end <= start or span.start >= end:
                continue
            image = sequence.request.images[span.image]
            for tile in range((max(start, span.start) - span.start) // per_tile, image.num_tiles):
                tile_start = span.start + tile * per_tile
                if tile_start >= end:
                    break
                piece_start, piece_end = max(start, tile_start), min(end, tile_start + per_tile)
                row = self._take_row(sequence.request.namespace, image, tile, step, piece_end - start)
                if row is None:
                    return max(start, tile_start), rows
                rows.append(ImageRows(piece_start, piece_end, row * per_tile + piece_start - tile_start))
                end = min(end, max(piece_end, start + step.token_room))  # a tile to encode leaves less room
        return end, rows

    def _take_row(
        self, namespace: str, image: PreparedImage, tile: int, step: StepDraft, num_tokens: int
    ) -> int | None:
        """Find a tile's row, or reserve one and have it encoded; `num_tokens` of the chunk end with the tile."""
        key, work = (namespace, image.digest, tile), self.budgets.tile_work
        row = self.tiles.find(key)
        if row is not None or not step.has_tile_room(work + num_tokens):
            return row
        is_large = image.num_pixels > self.budgets.max_step_pixels
        if not (self.cuts.ask(image) if is_large else step.has_pixel_room(image)):
            return None
        row = self.tiles.reserve(key)
        if row is not None:
            step.add_tile(TileJob(namespace, image, tile, row), work)
            self.shares.charge(namespace, work)
            if not is_large:
                step.cut_inside(image)
        return row

    def _admit(self, sequence: Sequence, step: StepDraft, turns: Turns) -> bool:
        """Let a waiting request run, if sequences, tokens and blocks allow it."""
        if step.token_room < 1 or len(self.running) >= self.budgets.max_sequences:
            turns.close()
            return False
        if sequence.num_pending:  # preempted with a sample in flight: it cannot be computed again yet
            turns.close(sequence.request.namespace)
            return False
        hits = self.kv.find_prefix(sequence)
        if self.kv.is_computing_next(sequence, len(hits)):
            return False
        has_entered = self._enter(sequence, hits)
        if not has_entered:  # what becomes free is kept for it, unless its namespace has most already
            turns.close(sequence.request.namespace if holds_most(sequence, self.running) else None)
        return has_entered

    def _keep_cuts(self, has_prompts: bool) -> None:
        """Keep the tiles of the picture that each running prompt has come to.

        Of no later one: a prompt could wait for room that another keeps, and that one for room of the first.
        """
        images = (sequence.find_image() for sequence in self.running) if has_prompts else ()
        self.cuts.keep({image.digest for image in images if image is not None})

    def _make_way(self, step: StepDraft) -> None:
        """Preempt for the first in turn whose namespace has less than others; before these have a chunk in the step."""
        for newcomer in self.shares.order_heads(self.running, self.waiting):
            hits = self.kv.find_prefix(newcomer)
            if self.kv.is_computing_next(newcomer, len(hits)):
                continue
            room = self.budgets.max_sequences - len(self.running), self.kv.count_available(hits)
            num_blocks = self.kv.count_for_entry(newcomer)
            victims = choose_victims(newcomer, num_blocks, len(hits), self.running, room, self.kv.pool.count_sole)
            for victim in victims:
                self._preempt(victim, step)
            if victims:
                self._enter(newcomer, hits)
                return

    def _enter(self, sequence: Sequence, hits: list[int]) -> bool:
        """Move a waiting request, whose first blocks are cached, to the running ones; not where blocks are short."""
        if not self.kv.enter(sequence, hits):
            return False
        self.waiting.remove(sequence)
        if not sequence.was_admitted:
            sequence.was_admitted = True
            sequence.cached_tokens = sequence.num_scheduled
            self.counters["prefix_queries"] += len(sequence.token_ids)
            self.counters["prefix_hits"] += sequence.cached_tokens
            self._admitted.append((sequence.id, sequence.request))
        insort(self.running, sequence, key=lambda running: running.id)
        return True

    def _append(self, sequence: Sequence, sampled: Sampled) -> StepOutput:
        if sampled.error is not None:
            self._end(sequence)
            return StepOutput(sequence.request.request_id, finish_reason=FinishReason.ERROR, error=sampled.error)
        sequence.token_ids.append(sampled.token_id)
        self.counters["tokens_generated"] += 1
        reason = None
        if sampled.token_id in sequence.request.stop_token_ids:
            reason = FinishReason.STOP
        elif sequence.num_generated >= sequence.max_new_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            # A step in flight may yet compute the token that ended it, or fail to.
            self.kv.publish(sequence, min(sequence.num_scheduled, len(sequence.token_ids) - 1))
            self._end(sequence)
        return StepOutput(
            sequence.request.request_id,
            (sampled.token_id,),
            (sampled.logprob,) if sampled.logprob else (),
            reason,
            cached_tokens=sequence.cached_tokens,
        )

    def _preempt(self, sequence: Sequence, step: StepDraft) -> None:
        step.has_preempted = True
        self.counters["preemptions"] += 1
        self.running.remove(sequence)
        self.kv.give_back(sequence)
        sequence.num_pending -= step.withdraw(sequence.id)
        sequence.num_scheduled = 0
        self.waiting.appendleft(sequence)

    def _end_all(self, sequences: list[Sequence], error: str) -> list[StepOutput]:
        for sequence in sequences:
            self._end(sequence)
        return [StepOutput(s.request.request_id, finish_reason=FinishReason.ERROR, error=error) for s in sequences]

    def _end(self, sequence: Sequence) -> None:
        if sequence.blocks:
            self.running.remove(sequence)
            self.kv.give_back(sequence)
        elif self.unready.pop(sequence.request.request_id, None) is None:
            self.waiting.remove(sequence)
        del self._by_request[sequence.request.request_id]
        self._admitted = [admitted for admitted in self._admitted if admitted[0] != sequence.id]
        self._released.append(sequence.id)
        self.counters["requests_ended"] += 1
        if not self._by_request:
            self.shares.clear()
