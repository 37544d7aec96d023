"""The scheduler's rules by example; `property/test_scheduler.py` holds its laws under random histories."""

from dataclasses import replace
from typing import Any

import pytest

from tests.property.simulation import PER_TILE, PICTURES, Simulation, answer_alone, make_request
from tilewise.errors import ConfigError, InputError, PromptTooLongError
from tilewise.scheduling.scheduler import Scheduler
from tilewise.scheduling.steps import Budgets, Sampled, StepPlan
from tilewise.types import FinishReason

LARGE = PICTURES[2]


def make(num_blocks: int = 64, num_tile_rows: int = 16, **changes: Any) -> Simulation:
    given = {
        "max_step_tokens": 16,
        "max_step_tiles": 2,
        "max_sequences": 8,
        "session_len": 64,
        "block_size": 4,
        "tokens_per_tile": PER_TILE,
        **changes,
    }
    return Simulation(Budgets(**given), num_blocks, num_tile_rows)


def ask(request_id: str, *parts: Any, max_new_tokens: int = 8, **options: Any) -> Any:
    return make_request(request_id, parts, max_new_tokens=max_new_tokens, stop_token_ids=(), **options)


def step(simulation: Simulation) -> StepPlan:
    plan = simulation.schedule()
    assert plan is not None
    simulation.commit()
    return plan


def shown(plan: StepPlan) -> list[tuple[int, int, int]]:
    return [(chunk.sequence_id, chunk.start, chunk.end) for chunk in plan.chunks]


def test_nothing_to_do_is_no_step() -> None:
    assert make().schedule() is None


def test_decodes_go_first_and_prefills_share_what_is_left_oldest_first() -> None:
    simulation = make(max_step_tokens=10, use_prefix_cache=False)
    simulation.add(ask("a", *[1] * 3))
    assert shown(step(simulation)) == [(0, 0, 3)]
    simulation.add(ask("b", *[2] * 12))
    simulation.add(ask("c", *[3] * 12))
    assert shown(step(simulation)) == [(0, 3, 4), (1, 0, 9)]
    plan = step(simulation)
    assert shown(plan) == [(0, 4, 5), (1, 9, 12), (2, 0, 6)]
    assert [chunk.is_sampled for chunk in plan.chunks] == [True, True, False]
    assert len(plan.decodes) == 1


def test_a_large_picture_is_encoded_within_the_tile_budget_and_stalls_nobody() -> None:
    simulation = make()
    simulation.add(ask("text", 1, 2))
    step(simulation)
    simulation.add(ask("picture", 1, LARGE, 2))
    plans = [step(simulation) for _ in range(3)]
    assert [len(plan.tiles) for plan in plans] == [2, 2, 0]
    assert [shown(plan) for plan in plans] == [
        [(0, 2, 3), (1, 0, 1 + 2 * PER_TILE)],
        [(0, 3, 4), (1, 1 + 2 * PER_TILE, 14)],
        [(0, 4, 5), (1, 14, 15)],
    ]


def test_a_picture_that_is_encoded_is_not_encoded_for_the_next_request() -> None:
    simulation = make(use_prefix_cache=False, max_step_tiles=4)
    for request_id in ("a", "b"):
        simulation.add(ask(request_id, LARGE, 1))
        simulation.drain()
    assert simulation.scheduler.counters["tiles_encoded"] == LARGE.num_tiles


def test_a_prompt_that_someone_computes_is_waited_for_and_shared() -> None:
    simulation = make(max_step_tokens=64)
    for request_id in ("a", "b", "c"):
        simulation.add(ask(request_id, *range(9), {"a": 1, "b": 2, "c": 3}[request_id]))
    simulation.add(ask("other", *[5] * 9))
    assert shown(step(simulation)) == [(0, 0, 10), (3, 0, 9)], "the one that shares nothing does not wait"
    assert shown(step(simulation))[2:] == [(1, 8, 10), (2, 8, 10)]
    simulation.drain()


def test_at_least_one_token_of_a_cached_prompt_is_computed_and_the_hit_is_told() -> None:
    simulation = make()
    heard = []
    for request_id in ("a", "b"):
        simulation.scheduler.add(ask(request_id, *range(8), max_new_tokens=1))
        plan = simulation.scheduler.schedule()
        assert plan is not None
        heard += simulation.scheduler.commit(plan, {plan.chunks[0].sequence_id: Sampled(1)})
    assert [output.cached_tokens for output in heard] == [0, 4]


def test_the_next_turn_of_a_conversation_finds_the_answer_too() -> None:
    simulation = make()
    first = ask("first", *range(6), max_new_tokens=8)
    simulation.add(first)
    simulation.drain()
    answer, _ = answer_alone(first, 64)
    simulation.add(ask("second", *range(6), *answer, 1, 2))
    plan = step(simulation)
    assert plan.chunks[0].start == 12, "all but the last token of the answer, in whole blocks"


def test_the_youngest_gives_its_blocks_to_the_oldest_and_comes_back_first() -> None:
    simulation = make(num_blocks=5, session_len=20, use_prefix_cache=False)
    for request_id, token in (("old", 1), ("young", 2), ("later", 3)):
        simulation.add(ask(request_id, *[token] * 7, max_new_tokens=12))
    ids = set[int]()
    while not simulation.scheduler.counters["preemptions"]:
        ids |= {sequence_id for sequence_id, _, _ in shown(step(simulation))}
    assert ids == {0, 1}
    assert [sequence.id for sequence in simulation.scheduler.running] == [0]
    assert [sequence.id for sequence in simulation.scheduler.waiting] == [1, 2]
    simulation.drain()


def test_a_step_ahead_leaves_the_unknown_token_on_the_device() -> None:
    simulation = make()
    simulation.add(ask("a", 1, 2))
    first, second = simulation.schedule(), simulation.schedule()
    assert first is not None
    assert second is not None
    assert (first.chunks[0].token_ids, second.chunks[0].token_ids) == ((1, 2), None)
    simulation.commit()
    simulation.drain()


def test_a_step_ahead_never_samples_beyond_the_bound_and_an_early_stop_wastes_one_token() -> None:
    simulation = make()
    simulation.add(ask("bounded", 1, 2, max_new_tokens=1))
    assert simulation.schedule() is not None
    assert simulation.schedule() is None, "the only token it may have is on its way"
    simulation.commit()
    request = ask("free", 3, 4)
    (stop, *_), _ = answer_alone(request, 64)
    simulation.add(make_request("stopped", [3, 4], stop_token_ids=(stop,)))
    simulation.schedule()
    simulation.schedule()
    simulation.commit()
    assert simulation.told["stopped"].reason is FinishReason.STOP
    assert simulation.scheduler.kv.pool.num_held == 0, "its blocks are free while the device still works for it"
    simulation.commit()
    assert simulation.told["stopped"].token_ids == [stop]


def test_one_preempted_with_a_sample_in_flight_gets_its_token_before_it_is_computed_again() -> None:
    simulation = make(num_blocks=6, session_len=24, use_prefix_cache=False)
    for request_id, token in (("old", 1), ("young", 2)):
        simulation.add(ask(request_id, *[token] * 7, max_new_tokens=12))
    simulation.schedule()
    while not simulation.scheduler.counters["preemptions"]:
        simulation.schedule()
        if not simulation.scheduler.counters["preemptions"]:
            simulation.commit()
    (waiting,) = simulation.scheduler.waiting
    assert waiting.num_pending == 1
    simulation.abort("old")
    assert simulation.schedule() is None, "there is room, but its newest token is unknown"
    simulation.drain()


def test_a_failed_step_ends_its_own_requests_and_forgets_its_tiles() -> None:
    simulation = make(max_sequences=1)
    simulation.add(ask("broken", LARGE, 1))
    simulation.add(ask("waiting", LARGE, 1))
    simulation.schedule()
    simulation.fail()
    assert simulation.told["broken"].reason is FinishReason.ERROR
    assert simulation.open_ids == ["waiting"]
    assert len(simulation.scheduler.kv.prefix) == 0
    assert step(simulation).tiles[0].tile == 0, "the tile is encoded again"
    simulation.drain()


def test_what_a_failed_step_should_have_written_is_never_found() -> None:
    simulation = make(max_step_tokens=6)
    prompt = [1] * 12
    simulation.add(ask("broken", *prompt))
    simulation.schedule()
    simulation.schedule()
    simulation.commit()
    assert len(simulation.scheduler.kv.prefix) == 1, "only the block that a committed step filled"
    simulation.fail()
    simulation.add(ask("again", *prompt))
    simulation.drain()


def test_the_token_that_ended_an_answer_is_not_found_if_the_step_that_computes_it_fails() -> None:
    simulation = make()
    (stop, *_), _ = answer_alone(ask("probe", 1, 2, 3), 64)
    simulation.add(make_request("stopped", [1, 2, 3], stop_token_ids=(stop,)))
    simulation.schedule()
    simulation.schedule()
    simulation.commit()
    assert simulation.told["stopped"].reason is FinishReason.STOP
    simulation.fail()
    simulation.add(ask("next turn", 1, 2, 3, stop, 4, 5))
    simulation.drain()


def test_an_aborted_request_frees_its_blocks_at_once_wherever_it_is() -> None:
    simulation = make(max_sequences=1)
    simulation.add(ask("runs", *[1] * 9))
    simulation.add(ask("waits", *[2] * 9))
    step(simulation)
    for request_id in ("waits", "runs"):
        simulation.abort(request_id)
        assert simulation.told[request_id].reason is FinishReason.ABORT
    assert simulation.scheduler.abort("runs") is None
    assert simulation.scheduler.abort("never") is None
    assert simulation.scheduler.kv.pool.num_held == 0
    assert not simulation.scheduler.has_work


def test_an_ended_id_may_be_used_again_and_is_another_sequence() -> None:
    simulation = make()
    simulation.add(ask("a", 1, 2))
    with pytest.raises(InputError, match="'a'") as refusal:
        simulation.scheduler.add(ask("a", 3))
    assert refusal.value.param == "request_id"
    first = simulation.schedule()
    assert first is not None
    simulation.scheduler.abort("a")
    simulation.scheduler.add(ask("a", 3))
    assert simulation.scheduler.commit(first, {0: Sampled(5)}) == [], "the old step speaks of nobody"
    simulation.check()


def test_a_prompt_without_room_for_one_token_is_refused_with_the_numbers() -> None:
    simulation = make(session_len=16)
    with pytest.raises(PromptTooLongError, match=r"16 tokens.*session_len=16"):
        simulation.scheduler.add(ask("a", *[1] * 16))
    simulation.check()
    simulation.add(ask("b", *[1] * 15))
    simulation.drain()
    assert len(simulation.told["b"].token_ids) == 1


@pytest.mark.parametrize(("num_blocks", "num_tile_rows"), [(15, 16), (0, 16), (64, 0)])
def test_pools_too_small_for_one_request_are_refused(num_blocks: int, num_tile_rows: int) -> None:
    budgets = make().budgets
    with pytest.raises(ConfigError, match="session_len=64") as refusal:
        Scheduler(budgets, num_blocks, num_tile_rows)
    assert refusal.value.param == "session_len"


def test_integrity_notices_a_request_in_two_places_and_blocks_of_nobody() -> None:
    simulation = make()
    simulation.add(ask("a", 1, 2))
    step(simulation)
    scheduler = simulation.scheduler
    scheduler.waiting.append(scheduler.running[0])
    with pytest.raises(AssertionError):
        scheduler.check_integrity()
    scheduler.waiting.remove(scheduler.running[0])
    scheduler.check_integrity()
    scheduler.running[0].blocks = scheduler.running[0].blocks[1:]
    with pytest.raises(AssertionError, match="add up"):
        scheduler.check_integrity()


BUSY = {"max_step_tokens": 64, "max_step_tiles": 8, "max_busy_work": 6, "tile_work": 4}


def test_where_a_streamed_answer_decodes_a_picture_is_taken_a_tile_at_a_time() -> None:
    simulation = make(**BUSY)
    simulation.add(ask("a", 1, 2, max_new_tokens=20))
    step(simulation)
    simulation.add(ask("b", 1, LARGE, *[3] * 12))
    plans = [step(simulation) for _ in range(8)]
    assert all(len(plan.decodes) >= 1 for plan in plans)
    busy = [plan for plan in plans if plan.prefills]
    assert [len(plan.tiles) for plan in busy[: LARGE.num_tiles]] == [1] * LARGE.num_tiles
    alone = make(**BUSY)
    alone.add(ask("b", 1, LARGE, *[3] * 12))
    assert len(step(alone).tiles) == LARGE.num_tiles, "nobody waits"


@pytest.mark.parametrize(("are_streamed", "num_tiles"), [((False, False), LARGE.num_tiles), ((False, True), 1)])
def test_answers_that_are_asked_for_whole_wait_for_a_picture_and_one_stream_among_them_does_not(
    are_streamed: tuple[bool, ...], num_tiles: int
) -> None:
    simulation = make(**BUSY)
    for number, is_streamed in enumerate(are_streamed):
        simulation.add(ask(str(number), number, 2, max_new_tokens=20, is_streamed=is_streamed))
    step(simulation)
    simulation.add(ask("picture", 1, LARGE, *[3] * 12))
    plan = step(simulation)
    assert (len(plan.decodes), len(plan.tiles)) == (2, num_tiles)


def test_when_the_last_stream_ends_the_bound_ends_with_it() -> None:
    simulation = make(**BUSY)
    simulation.add(ask("whole", 1, 2, max_new_tokens=20, is_streamed=False))
    simulation.add(ask("stream", 2, 2, max_new_tokens=2))
    step(simulation)
    simulation.add(ask("picture", 1, LARGE, *[3] * 12, is_streamed=False))
    assert [len(step(simulation).tiles) for _ in range(2)] == [1, LARGE.num_tiles - 1]


def test_a_stream_that_decodes_in_every_other_step_bounds_those_between_too() -> None:
    simulation = make(**BUSY)
    stream = ask("stream", 1, 2, max_new_tokens=20)
    penalised = replace(stream.generation, repetition_penalty=1.1)
    simulation.add(replace(stream, generation=penalised))
    step(simulation)
    simulation.scheduler.add(ask("picture", 1, LARGE, *[3] * 12, is_streamed=False))
    plans = [simulation.scheduler.schedule() for _ in range(2)]  # the second's token depends on which the first's is
    assert [(len(plan.decodes), len(plan.tiles)) for plan in plans if plan is not None] == [(1, 1), (0, 1)]
