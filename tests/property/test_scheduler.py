"""The scheduler under random histories; `simulation` holds the laws."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.property.simulation import PICTURES, STOP_ID, Simulation, make_request
from tilewise.scheduling.steps import Budgets
from tilewise.types import PreparedImage

SESSION_LEN = 32
# Few openings, so that prompts share prefixes; some end or begin inside a block, one ends in a picture.
OPENINGS: tuple[tuple[int | PreparedImage, ...], ...] = (
    (1,),
    (1, 2, 3, 4),
    (1, 2, 3, 4, 5, 6, 1, 2, 3),
    (1, PICTURES[0]),
    (1, PICTURES[1], 2),
    (1, 2, PICTURES[2], 3, 4),
    (PICTURES[0], PICTURES[1], 5),
    (1, PICTURES[1], PICTURES[0]),
    (PICTURES[1], PICTURES[2], PICTURES[1]),
    (PICTURES[2], PICTURES[1]),
)
openings = st.sampled_from(OPENINGS)
endings = st.lists(st.integers(1, 3), max_size=6)
budgets = st.builds(
    Budgets,
    max_step_tokens=st.integers(1, 20),
    max_step_tiles=st.integers(1, 3),
    max_sequences=st.integers(1, 5),
    session_len=st.just(SESSION_LEN),
    block_size=st.sampled_from((1, 3, 4, 8)),
    tokens_per_tile=st.just(3),
    use_prefix_cache=st.booleans(),
    max_busy_work=st.none() | st.integers(1, 20),
    tile_work=st.integers(0, 9),
    max_step_pixels=st.sampled_from((1 << 22, 1, 28 * 28, 2 * 28 * 28)),  # of all, of none, of the two smallest
    max_cut_pixels=st.integers(1, 4).map(lambda number: number * 28 * 28),
    max_cut_tiles=st.integers(1, 6),
)


class Histories(RuleBasedStateMachine):
    @initialize(
        budgets=budgets, num_extra_blocks=st.integers(0, 6), num_rows=st.integers(1, 5), depth=st.integers(1, 3)
    )
    def start(self, budgets: Budgets, num_extra_blocks: int, num_rows: int, depth: int) -> None:
        num_blocks = -(-SESSION_LEN // budgets.block_size) + num_extra_blocks
        self.simulation = Simulation(budgets, num_blocks, num_rows)
        self.depth = depth

    @rule(
        opening=openings,
        ending=endings,
        namespace=st.sampled_from(("", "", "b", "c")),
        max_new_tokens=st.integers(1, 20),
        ignores_stops=st.booleans(),
        is_streamed=st.booleans(),
        is_ready=st.booleans(),
    )
    def add(
        self,
        opening: tuple[int | PreparedImage, ...],
        ending: list[int],
        namespace: str,
        max_new_tokens: int,
        ignores_stops: bool,
        is_streamed: bool,
        is_ready: bool,
    ) -> None:
        request = make_request(
            f"r{len(self.simulation.told)}",
            (*opening, *ending),
            namespace=namespace,
            max_new_tokens=max_new_tokens,
            stop_token_ids=() if ignores_stops else (STOP_ID,),
            is_streamed=is_streamed,
        )
        self.simulation.add(request, is_ready=is_ready)

    @precondition(lambda self: self.simulation.unready)
    @rule()
    def mark_ready(self) -> None:
        self.simulation.mark_ready()

    @precondition(lambda self: self.simulation.cutting)
    @rule()
    def cut(self) -> None:
        self.simulation.cut()

    @precondition(lambda self: self.simulation.cutting)
    @rule(dice=st.integers(0, 2))
    def refuse_image(self, dice: int) -> None:
        if dice == 0:
            self.simulation.refuse_image()

    @rule(count=st.integers(1, 5))
    def step(self, count: int) -> None:
        for _ in range(count):
            if len(self.simulation.flying) < self.depth:
                self.simulation.schedule()
            if len(self.simulation.flying) == self.depth:
                self.simulation.commit()

    @precondition(lambda self: self.simulation.flying)
    @rule()
    def commit(self) -> None:
        self.simulation.commit()

    @precondition(lambda self: self.simulation.flying)
    @rule(dice=st.integers(0, 2))
    def fail(self, dice: int) -> None:
        if dice == 0:
            self.simulation.fail()

    @precondition(lambda self: self.simulation.told)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.simulation.abort(data.draw(st.sampled_from(sorted(self.simulation.told))))

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.drain()


@settings(max_examples=200)
@given(
    budgets=budgets,
    num_extra_blocks=st.integers(0, 6),
    depth=st.integers(1, 2),
    opening=openings,
    floods=st.lists(st.tuples(openings, st.integers(1, 20), st.booleans()), min_size=1, max_size=4),
    others=st.sampled_from(("a", "ac", "acde")),
)
def test_every_request_ends_within_a_bound_however_much_another_key_sends(
    budgets: Budgets,
    num_extra_blocks: int,
    depth: int,
    opening: tuple[int | PreparedImage, ...],
    floods: list[tuple[tuple[int | PreparedImage, ...], int, bool]],
    others: str,
) -> None:
    num_blocks = -(-SESSION_LEN // budgets.block_size) + num_extra_blocks
    simulation = Simulation(budgets, num_blocks, 3)

    def keep_flooding() -> None:
        for namespace in others:
            while sum(s.request.namespace == namespace for s in simulation.scheduler.waiting) < 3:
                number = len(simulation.told)
                parts, max_new_tokens, is_streamed = floods[number % len(floods)]
                simulation.add(
                    make_request(
                        f"{namespace}{number}",
                        (*parts, 1 + number % 3),
                        namespace=namespace,
                        max_new_tokens=max_new_tokens,
                        is_streamed=is_streamed,
                    )
                )

    for _ in range(5):
        keep_flooding()
        if simulation.schedule():
            simulation.commit()
    simulation.add(make_request("b", opening, namespace="b", max_new_tokens=5))
    # What may run beside it, each to its end with a token a step, and for each key in turn.
    bound = 2 * len(others) * (budgets.max_sequences + 1) * SESSION_LEN
    for _ in range(bound):
        keep_flooding()
        plan = simulation.schedule()
        if simulation.cutting:
            simulation.cut()
        if simulation.flying and (plan is None or len(simulation.flying) >= depth):
            simulation.commit()
        if simulation.told["b"].reason is not None:
            return
    raise AssertionError("b starves")


class LongHistories(Histories):
    pass


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=400, stateful_step_count=40)
TestLongHistories = pytest.mark.timeout(900)(pytest.mark.slow(LongHistories.TestCase))
TestLongHistories.settings = settings(max_examples=2000, stateful_step_count=80)
