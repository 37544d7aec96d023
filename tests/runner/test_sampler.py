"""The sampler against a naive one in NumPy and fp64: supports exactly, draws by the inverse of the distribution."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tilewise.runner.sampler import SamplingState, sample
from tilewise.types import GenerationConfig, Request

LAST_DRAW = 1.0 - 2.0**-53  # the largest number that random() returns
STOP_ID = 3


class Drawn(SamplingState):
    """A state whose draws are given."""

    def __init__(
        self,
        generation: GenerationConfig,
        number: float = 0.5,
        *,
        prompt: tuple[int, ...] = (0,),
        output: tuple[int, ...] = (),
    ) -> None:
        super().__init__(Request("r", prompt, generation=generation, stop_token_ids=(STOP_ID,)), fallback_seed=0)
        self.number = number
        self.output_ids = list(output)

    def draw(self) -> float:
        return self.number


def seeded(generation: GenerationConfig, *, fallback_seed: int = 0, num_output: int = 0) -> SamplingState:
    state = SamplingState(Request("r", (0,), generation=generation), fallback_seed)
    state.output_ids = [0] * num_output
    return state


def choose(logits: list[float], *states: SamplingState) -> list[int]:
    return sample(torch.tensor([logits] * len(states)), states).token_ids.tolist()


def naive_distribution(logits: list[float], g: GenerationConfig) -> tuple[list[int], np.ndarray]:
    """Ids that may be drawn, most likely first, and their probabilities."""
    row = np.array(logits, dtype=np.float32)
    scaled = (row - row.max()).astype(np.float64) / g.temperature  # differences of fp32 logits, then fp64
    order = sorted(range(len(logits)), key=lambda token_id: -scaled[token_id])  # stable: lower ids first
    order = order[: g.top_k or None]
    weights = np.exp(scaled[order] - scaled[order].max())
    probabilities = weights / weights.sum()
    before = np.concatenate(([0.0], probabilities.cumsum()[:-1]))
    keep = (before < g.top_p) & (probabilities >= g.min_p * probabilities[0])
    kept = [token_id for token_id, is_kept in zip(order, keep, strict=True) if is_kept]
    return kept, probabilities[keep] / probabilities[keep].sum()


# Steps of 0.37 make ties common and keep every threshold below away from a boundary.
rows = st.lists(st.integers(-8, 8).map(lambda step: step * 0.37), min_size=1, max_size=12)
settings = st.builds(
    GenerationConfig,
    do_sample=st.just(True),
    temperature=st.sampled_from((0.31, 0.8, 1.0, 2.7)),
    top_k=st.sampled_from((0, 1, 2, 5, 50)),
    top_p=st.sampled_from((0.0123, 0.3137, 0.7771, 0.9513, 1.0)),
    min_p=st.sampled_from((0.0, 0.0371, 0.4123, 1.0)),
)


@given(rows, settings)
def test_draws_are_the_inverse_of_the_naive_distribution(logits: list[float], generation: GenerationConfig) -> None:
    ids, probabilities = naive_distribution(logits, generation)
    ends = probabilities.cumsum()
    middles = ends - probabilities / 2
    width = 1e-10  # the rarest token of `rows` has 5e-9
    drawn = choose(logits, *(Drawn(generation, number) for number in middles))
    assert drawn == ids, "every token of the support at its own place, and no other"
    seams = [number for end in ends[:-1] for number in (end - width, end + width)]
    expected = [token_id for pair in itertools.pairwise(ids) for token_id in pair]
    assert [choose(logits, Drawn(generation, number))[0] for number in seams] == expected
    assert choose(logits, Drawn(generation, 0.0), Drawn(generation, LAST_DRAW)) == [ids[0], ids[-1]]


@given(st.lists(st.tuples(settings, st.booleans(), st.integers(0, 2**64 - 1)), min_size=1, max_size=6), st.randoms())
def test_a_seed_repeats_in_any_company_and_order(
    choices: list[tuple[GenerationConfig, bool, int]], rng: random.Random
) -> None:
    table = torch.randn((len(choices), 40), generator=torch.Generator().manual_seed(len(choices)))
    states = [
        seeded(replace(generation, do_sample=is_sampled, random_seed=seed)) for generation, is_sampled, seed in choices
    ]
    alone = [int(sample(table[[row]], [state]).token_ids) for row, state in enumerate(states)]
    order = list(range(len(choices)))
    rng.shuffle(order)
    together = sample(table[order], [states[row] for row in order]).token_ids.tolist()
    assert together == [alone[row] for row in order]


def test_a_draw_depends_on_the_seed_and_the_number_of_tokens_and_nothing_else() -> None:
    generation = GenerationConfig(do_sample=True, random_seed=5)
    assert seeded(generation).draw() == seeded(generation, fallback_seed=9).draw()
    later = [seeded(generation, num_output=count).draw() for count in range(100)]
    assert len(set(later)) == 100
    assert seeded(replace(generation, random_seed=6)).draw() != later[0]
    unseeded = replace(generation, random_seed=None)
    assert seeded(unseeded, fallback_seed=1).draw() != seeded(unseeded, fallback_seed=2).draw()
    assert all(0.0 <= number < 1.0 for number in later)


@given(rows.filter(lambda row: len(row) > 1))
def test_greedy_takes_the_most_likely_and_of_equals_the_first(logits: list[float]) -> None:
    first = logits.index(max(logits))
    greedy = Drawn(GenerationConfig(temperature=2.0, top_k=5), LAST_DRAW)
    cold = Drawn(GenerationConfig(do_sample=True, temperature=0.0), LAST_DRAW)
    one = Drawn(GenerationConfig(do_sample=True, top_k=1), LAST_DRAW)
    narrow = Drawn(GenerationConfig(do_sample=True, top_k=0, top_p=1e-6), LAST_DRAW)
    assert choose(logits, greedy, cold, one, narrow) == [first] * 4


def test_a_draw_that_rounds_to_one_never_falls_on_a_banned_token() -> None:
    free = GenerationConfig(do_sample=True, top_k=0)
    logits = [1.0, 2.0, 0.5, 5.0, 3.0]
    banned = replace(free, bad_token_ids=(2, 4))
    early = replace(free, min_new_tokens=1)
    drawn = choose(logits, Drawn(free, 1.0), Drawn(banned, 1.0), Drawn(early, 1.0))
    assert drawn == [2, 0, 2]
    flat = sample(torch.zeros((1, 92_553)), [Drawn(free, 1.0)])
    assert flat.token_ids.tolist() == [92_552], "without top-p no token is out of reach"
    wide = torch.randn((1, 92_553), generator=torch.Generator().manual_seed(1))
    bad = tuple(range(0, 92_553, 2))
    token_ids = sample(wide, [Drawn(replace(free, bad_token_ids=bad), 1.0)]).token_ids
    assert int(token_ids) % 2 == 1


def test_bad_ids_are_never_taken() -> None:
    logits = [5.0, 4.0, 3.0, 2.0]
    greedy = GenerationConfig(bad_token_ids=(0, 1))
    assert choose(logits, Drawn(greedy)) == [2]
    sampled = replace(greedy, do_sample=True, temperature=100.0)
    assert set(choose(logits, *(Drawn(sampled, number / 50) for number in range(50)))) == {2, 3}


def test_no_stop_id_comes_before_the_fewest_new_tokens_and_any_time_after() -> None:
    logits = [0.0, 1.0, 2.0, 9.0]
    generation = GenerationConfig(min_new_tokens=2)
    outputs = [(), (1,), (1, 1)]
    assert choose(logits, *(Drawn(generation, output=output) for output in outputs)) == [2, 2, STOP_ID]


def test_a_repetition_penalty_divides_likely_and_multiplies_unlikely_tokens_that_were_seen() -> None:
    logits = torch.tensor([[4.0, -1.0, 3.0, 0.5, -2.0]])
    state = Drawn(GenerationConfig(repetition_penalty=2.0, logprobs=5), prompt=(0, 1), output=(4, 4))
    sample(logits, [state])
    assert logits[0].tolist() == [2.0, -2.0, 3.0, 0.5, -4.0]


def test_presence_counts_once_and_frequency_every_time_and_both_see_the_answer_only() -> None:
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    state = Drawn(GenerationConfig(presence_penalty=0.5, frequency_penalty=0.25), prompt=(0, 0, 3), output=(1, 1, 2))
    sample(logits, [state])
    assert logits[0].tolist() == [4.0, 3.0 - 0.5 - 2 * 0.25, 2.0 - 0.5 - 0.25, 1.0]


def test_a_bias_is_added_to_its_token_and_a_ban_outweighs_it() -> None:
    logits = [1.0, 2.0, 3.0]
    assert choose(logits, Drawn(GenerationConfig(logit_bias=((0, 2.5),)))) == [0]
    assert choose(logits, Drawn(GenerationConfig(logit_bias=((0, 100.0),), bad_token_ids=(0,)))) == [2]


def test_penalties_of_one_row_leave_the_others_alone() -> None:
    table = torch.tensor([[1.0, 2.0]] * 3)
    free = Drawn(GenerationConfig())
    sample(table, [free, Drawn(GenerationConfig(bad_token_ids=(1,))), free])
    assert table.tolist() == [[1.0, 2.0], [1.0, -math.inf], [1.0, 2.0]]


def test_logprobs_are_those_of_the_chosen_token_and_of_the_most_likely_after_penalties() -> None:
    logits = [1.0, 2.0, 3.0, 0.0]
    asked = GenerationConfig(logprobs=2, bad_token_ids=(2,))
    results = sample(
        torch.tensor([logits] * 4),
        [
            Drawn(GenerationConfig()),
            Drawn(asked),
            Drawn(replace(asked, logprobs=0)),
            Drawn(replace(asked, do_sample=True, top_k=0), LAST_DRAW),
        ],
    )
    normal = math.log(math.exp(1.0) + math.exp(2.0) + math.exp(0.0))
    silent, greedy, bare, sampled = (logprob for _, logprob in results.read())
    assert results.token_ids.tolist() == [2, 1, 1, 3]
    assert silent is None
    assert greedy is not None
    assert greedy.token_id == 1
    assert greedy.logprob == pytest.approx(2.0 - normal, abs=1e-6)
    assert [token_id for token_id, _ in greedy.top] == [1, 0]
    assert [logprob for _, logprob in greedy.top] == pytest.approx([2.0 - normal, 1.0 - normal], abs=1e-6)
    assert bare is not None
    assert (bare.token_id, bare.top) == (1, ())
    assert sampled is not None
    assert sampled.logprob == pytest.approx(0.0 - normal, abs=1e-6)
