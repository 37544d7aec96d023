"""From logits to the next token of each row, on the device, in any company alike.

A row's draw comes from its own seed and the number of tokens it has generated, never from its place in the
batch: the uniform number is made on the CPU, and the device inverts the distribution at it.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilewise.errors import TilewiseError
from tilewise.inputs.text.grammar import Guide
from tilewise.kernels import download, upload
from tilewise.types import GenerationConfig, Request, TokenLogprob

# Below this a sampled answer is the greedy one to every digit of fp32.
_GREEDY_BELOW = 1e-5


class SamplingState:
    """What one sequence's sampling remembers: its settings, its seed, its tokens so far and where they are in its form.

    It outlives a preemption, as the tokens do. `error` says why the sequence cannot go on. Tokens that are sampled
    and not yet on the host are counted in `num_pending`.
    """

    def __init__(self, request: Request, fallback_seed: int, guide: Guide | None = None) -> None:
        """Take the request's seed, or `fallback_seed` where it has none; `guide` is of its form, if it has one."""
        self.generation: GenerationConfig = request.generation
        self.stop_token_ids = request.stop_token_ids
        self.seen_ids = set(request.token_ids) if self.generation.repetition_penalty != 1.0 else set[int]()
        self.output_ids: list[int] = []
        self.num_pending = 0
        seed = self.generation.random_seed
        self.seed = fallback_seed if seed is None else seed
        self.error: str | None = None
        self._guide = guide

    @property
    def is_greedy(self) -> bool:
        """The most likely token is taken."""
        return not self.generation.do_sample or self.generation.temperature < _GREEDY_BELOW

    @property
    def num_sampled(self) -> int:
        """Tokens so far."""
        return len(self.output_ids) + self.num_pending

    @property
    def is_plain(self) -> bool:
        """The likeliest token is taken, of logits as they are, and nobody asked how likely it is."""
        return not self.has_penalties and self.is_greedy and self.generation.logprobs is None

    @property
    def has_penalties(self) -> bool:
        """Logits change before the choice."""
        g = self.generation
        return g.needs_known_tokens or bool(g.bad_token_ids or g.logit_bias or self.is_short)

    @property
    def is_short(self) -> bool:
        """Too few tokens so far for a stop token."""
        return self.num_sampled < self.generation.min_new_tokens

    @property
    def is_guided(self) -> bool:
        """The answer must have a form."""
        return self._guide is not None

    def append(self, token_id: int) -> None:
        """Take the token that was sampled."""
        self.output_ids.append(token_id)
        self.num_pending = max(0, self.num_pending - 1)
        if self._guide is not None and self.error is None and token_id not in self.stop_token_ids:
            try:
                self._guide.consume(token_id)
            except Exception as error:
                self._fail(error)

    def fill(self, mask: NDArray[np.uint8]) -> None:
        """Set the bits of the tokens that the form allows next; all of them where there is an error."""
        assert self._guide is not None
        try:
            self._guide.fill(mask, self.stop_token_ids, self.generation.bad_token_ids, is_short=self.is_short)
        except Exception as error:  # of a library that meets what users write: it must not reach the other rows
            self._fail(error)
            mask[:] = 0xFF

    def _fail(self, error: Exception) -> None:
        known = isinstance(error, TilewiseError)
        self.error = str(error) if known else "The answer could not be held to its response_format."

    def draw(self) -> float:
        """Return this step's number in [0, 1): a function of the seed and the number of tokens so far."""
        return random.Random(f"{self.seed}:{self.num_sampled}").random()


@dataclass(frozen=True, slots=True)
class Samples:
    """What was chosen, on the device or, once downloaded, on the host.

    Shapes: token_ids: (B,) int64 · logprobs: for a row that asked, its own () and the likeliest tokens' (k,) fp32,
        and those tokens' ids (k,) int64
    """

    token_ids: Tensor
    logprobs: tuple[tuple[Tensor, Tensor, Tensor] | None, ...]

    def download(self) -> "Samples":
        """Start to copy everything to the host."""
        rows = (
            None if row is None else (download(row[0]), download(row[1]), download(row[2])) for row in self.logprobs
        )
        return Samples(download(self.token_ids), tuple(rows))

    def read(self) -> list[tuple[int, TokenLogprob | None]]:
        """Each row's token with its probabilities; on the host, when the step is over."""
        return [
            (token_id, None if row is None else _read_logprob(token_id, *row))
            for token_id, row in zip(self.token_ids.tolist(), self.logprobs, strict=True)
        ]


def _read_logprob(token_id: int, own: Tensor, values: Tensor, ids: Tensor) -> TokenLogprob:
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return TokenLogprob(token_id, own.item(), tuple((i, value) for i, value in pairs if value > -math.inf))


def sample(logits: Tensor, states: Sequence[SamplingState]) -> Samples:
    """Choose one token a row.

    Shapes: logits: (B, V) fp32, changed in place
    """
    for row, state in enumerate(states):
        if state.has_penalties:
            _penalize(logits[row], state)
    if any(state.is_guided for state in states):
        _hold_to_forms(logits, states)
    token_ids = logits.argmax(dim=-1)
    sampled = [row for row, state in enumerate(states) if not state.is_greedy]
    if sampled:
        rows = upload(np.array(sampled), logits.device)
        token_ids[rows] = _draw(logits[rows], [states[row] for row in sampled])
    return Samples(token_ids, _logprobs(logits, token_ids, states))


def _penalize(logits: Tensor, state: SamplingState) -> None:
    """Apply one row's penalties, biases and bans in place.

    Source: repetition penalty: Keskar et al. 2019, "CTRL", section 4.1; it sees prompt and output. Presence
    and frequency penalties as OpenAI documents them; they see the output only.
    """
    g = state.generation
    if g.repetition_penalty != 1.0:
        state.seen_ids.update(state.output_ids[-1:])
        seen = upload(np.array(list(state.seen_ids)), logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / g.repetition_penalty, values * g.repetition_penalty)
    if state.output_ids and (g.presence_penalty or g.frequency_penalty):
        output = upload(np.array(state.output_ids), logits.device)
        counts = torch.bincount(output, minlength=logits.numel())
        logits -= g.frequency_penalty * counts + g.presence_penalty * (counts > 0)
    if g.logit_bias:
        ids, biases = zip(*g.logit_bias, strict=True)
        logits.index_add_(0, upload(np.array(ids), logits.device), upload(np.array(biases, np.float32), logits.device))
    banned = [*g.bad_token_ids, *(state.stop_token_ids if state.is_short else ())]
    if banned and not state.is_guided:  # a form's mask has them, and may yet let it stop
        logits[upload(np.array(banned), logits.device)] = -math.inf


def _hold_to_forms(logits: Tensor, states: Sequence[SamplingState]) -> None:
    """Exclude what the forms of guided rows do not allow, in place. The masks travel as bits."""
    guided = [row for row, state in enumerate(states) if state.is_guided]
    width = logits.shape[1]
    masks = np.zeros((len(guided), -(-width // 8)), dtype=np.uint8)
    for mask, row in zip(masks, guided, strict=True):
        states[row].fill(mask)
    bits = upload(masks, logits.device).unsqueeze(-1)  # (R, ceil(V / 8), 1)
    is_allowed = (bits >> torch.arange(8, dtype=torch.uint8, device=logits.device)) & 1
    rows = upload(np.array(guided), logits.device)
    logits[rows] = logits[rows].masked_fill(is_allowed.flatten(1)[:, :width] == 0, -math.inf)


def _draw(logits: Tensor, states: list[SamplingState]) -> Tensor:
    """Temperature, then top-k, top-p and min-p of what top-k left, then the inverse of the cumulative distribution.

    Source: top-p: Holtzman et al. 2020, "The curious case of neural text degeneration", section 3.1;
    min-p: Nguyen et al. 2024, "Turning up the heat", section 3.
    """
    device, width = logits.device, logits.shape[1]

    def column(values: list[float]) -> Tensor:
        return upload(np.array(values, np.float64), device).unsqueeze(1)

    settings = [state.generation for state in states]
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    # The largest logit is 0 before the division, which then cannot overflow; fp64, so that a tail keeps its share
    # of a cumulative sum near 1.
    ordered = (ordered - ordered[:, :1]).double() / column([g.temperature for g in settings])
    is_beyond = torch.arange(width, device=device) >= column([float(g.top_k or width) for g in settings])
    probabilities = ordered.masked_fill(is_beyond, -math.inf).softmax(dim=-1)
    keep = probabilities > 0.0  # a draw that rounds to 1 must not fall on a banned token behind the others
    # The token that crosses top_p is kept: what came before it must be below the threshold. Sums may round above 1.
    limits = column([g.top_p if g.top_p < 1.0 else math.inf for g in settings])
    keep &= probabilities.cumsum(dim=-1) - probabilities < limits
    keep &= probabilities >= column([g.min_p for g in settings]) * probabilities[:, :1]
    cumulative = (probabilities * keep).cumsum(dim=-1)
    target = column([state.draw() for state in states]) * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True).clamp(max=width - 1)
    last_kept = keep.int().cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    return order.gather(1, torch.minimum(place, last_kept)).squeeze(1)


def _logprobs(
    logits: Tensor, token_ids: Tensor, states: Sequence[SamplingState]
) -> tuple[tuple[Tensor, Tensor, Tensor] | None, ...]:
    results: list[tuple[Tensor, Tensor, Tensor] | None] = []
    for row, state in enumerate(states):
        count = state.generation.logprobs
        if count is None:
            results.append(None)
            continue
        logprobs = logits[row].log_softmax(dim=-1)
        values, ids = logprobs.topk(count)
        results.append((logprobs[token_ids[row]], values, ids))
    return tuple(results)
