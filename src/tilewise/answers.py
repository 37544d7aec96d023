"""From requests to answers: what the Python interface and HTTP share.

`Answer` turns the engine's step outputs for one request into text, counts and a `Response`. `follow`, which Python's
calls, streams and chats share, submits answers, takes them to their ends in whatever order the engine emits, and aborts
what is left when its caller stops early, fails or is interrupted. No prompt is parsed and no engine is built here.
"""

import queue
import uuid
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace

from tilewise.engine.client import EngineClient
from tilewise.errors import EngineError
from tilewise.inputs.request_builder import RequestBuilder
from tilewise.inputs.text.boxes import parse_boxes
from tilewise.inputs.text.detokenizer import Detokenizer
from tilewise.types import Box, FinishReason, Request, Response, StepOutput, TokenLogprob, Usage

RANDOM_NOTICE = (
    "[No answer is shown: the weights of this model are random and were never trained. "
    "该模型的权重是随机的，未经训练，因此不显示回答。]"
)
_HEARTBEAT_S = 1.0
_NUM_SEEDS = 2**64


class Answer:
    """One request's answer as it grows.

    A stop token ends the answer and counts, but is not among `token_ids`; the tokens of a stop word are, up to the
    one that completes it. Of a random model the text is a notice, and everything else is what the model said.
    The request itself, with its pictures, is not kept. Stop words are looked for in what the model says after
    `min_new_tokens`, never in a call of a tool: its opening and all that follows are text, whatever special tokens are
    skipped before.
    """

    def __init__(self, request: Request, builder: RequestBuilder, session_id: int = 0) -> None:
        """Start with no tokens; `builder` is the one that made `request`."""
        self.request_id = request.request_id
        self.session_id = session_id
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        self.own_text = ""
        self._num_prompt_tokens = len(request.token_ids)
        self._num_image_tokens = sum(span.end - span.start for span in request.spans)
        self._stop_token_ids = request.stop_token_ids
        self._generation = request.generation
        self._call_id = builder.find_call_id(request.generation)
        self._num_generated, self._num_shown, self._cached_tokens = 0, 0, 0
        self._is_withheld = builder.model.is_random
        self._notice = RANDOM_NOTICE
        self._tokenizer = builder.tokenizer
        self._detokenizer = builder.create_detokenizer(request.generation)

    def push(self, output: StepOutput) -> str:
        """Take one step's output, give the text to show for it.

        Raises:
            EngineError: the engine failed on this request.
        """
        if output.finish_reason is FinishReason.ERROR:
            raise EngineError(output.error or "The engine failed on this request.")
        self._cached_tokens = max(self._cached_tokens, output.cached_tokens)
        delta = self._take(output)
        if output.finish_reason is not None and self.finish_reason is None:
            self.finish_reason = output.finish_reason
            delta += self._detokenizer.finish()
        self.own_text += delta
        if not self._is_withheld:
            return delta
        notice, self._notice = self._notice, ""
        return notice

    def _take(self, output: StepOutput) -> str:
        delta = ""
        for number, token_id in enumerate(output.token_ids, 1):
            self._num_generated += 1
            is_last = output.finish_reason is FinishReason.STOP and number == len(output.token_ids)
            if is_last and token_id in self._stop_token_ids:
                break
            self.token_ids.append(token_id)
            self.logprobs += output.logprobs[number - 1 : number]
            if token_id == self._call_id:
                delta += self._detokenizer.finish()
                if self._detokenizer.stop_word is None:
                    self._detokenizer = Detokenizer(self._tokenizer, skip_special_tokens=False)
            delta += self._detokenizer.push((token_id,), may_stop=self._num_generated > self._generation.min_new_tokens)
            if self._detokenizer.stop_word is not None:
                self.finish_reason = FinishReason.STOP
                break
        return delta

    def response(self) -> Response:
        """The answer as far as it has come."""
        return self._respond(RANDOM_NOTICE if self._is_withheld else self.own_text, 0)

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return Usage(self._num_prompt_tokens, self._num_generated, self._cached_tokens, self._num_image_tokens)

    def step_response(self, delta: str) -> Response:
        """What came since this was called last: `delta` and its ids; the counts are of the whole answer.

        The last one has the boxes of the whole answer.
        """
        num_shown, self._num_shown = self._num_shown, len(self.token_ids)
        return self._respond(delta, num_shown)

    def _respond(self, text: str, num_shown: int) -> Response:
        boxes: tuple[Box, ...] = ()
        if self.finish_reason is not None and not self._is_withheld:
            boxes = parse_boxes(self._tokenizer.decode(self.token_ids, skip_special_tokens=False))
        return Response(
            text=text,
            generate_token_len=self._num_generated,
            input_token_len=self._num_prompt_tokens,
            session_id=self.session_id,
            finish_reason=None if self.finish_reason is None else self.finish_reason.value,
            token_ids=self.token_ids[num_shown:],
            logprobs=None if self._generation.logprobs is None else self.logprobs[num_shown:],
            usage=self.usage,
            boxes=boxes,
        )


Job = tuple[Request, Answer]


def create_jobs(request: Request, builder: RequestBuilder, session_id: int = 0) -> list[Job]:
    """One request and answer for each of `n` choices, with ids and seeds of their own; they share the pictures."""
    generation, jobs = request.generation, list[Job]()
    for choice in range(generation.n):
        seed = None if generation.random_seed is None else (generation.random_seed + choice) % _NUM_SEEDS
        own = replace(request, request_id=uuid.uuid4().hex, generation=replace(generation, n=1, random_seed=seed))
        jobs.append((own, Answer(own, builder, session_id)))
    return jobs


def follow(client: EngineClient, jobs: Iterable[Job], max_running: int) -> Generator[tuple[Answer, str]]:
    """Run requests to their ends; yield each's answer with the text that a step added, in the engine's order.

    `jobs` is drawn on only where there is room, so that a lazy one keeps the pictures of at most `max_running`
    requests in memory. Whatever has not ended is aborted when this iterator is closed or fails.

    Raises:
        EngineError: the engine failed on a request, or is gone.
    """
    outputs: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
    running: dict[str, Answer] = {}
    waiting = iter(jobs)
    try:
        while True:
            new = next(waiting, None) if len(running) < max_running else None
            if new is not None:
                request, running[new[0].request_id] = new
                client.submit(request, outputs.put)
            elif not running:
                return
            for output in _collect(client, outputs, wait=new is None):
                answer = running.get(output.request_id)
                if answer is None:  # It met a stop word before, and the engine's last words on it come late.
                    continue
                delta = answer.push(output)
                if answer.finish_reason is not None:
                    del running[output.request_id]
                    if output.finish_reason is None:
                        client.abort(output.request_id)
                yield answer, delta
    finally:
        for request_id in running:
            client.abort(request_id)


def _collect(client: EngineClient, outputs: "queue.SimpleQueue[StepOutput]", *, wait: bool) -> Iterator[StepOutput]:
    """Yield what is there; with `wait`, one output at least."""
    while wait:
        try:
            yield outputs.get(timeout=_HEARTBEAT_S)
            break
        except queue.Empty:
            if not client.is_alive():
                raise EngineError("The engine stopped while requests were running; start it again.") from None
    while not outputs.empty():
        yield outputs.get()
