"""The answer does not depend on company, chunks, preemption or caches: greedy, fp32, on the CPU."""

import random
from dataclasses import replace

import pytest

from tests.engine.tiny import BLOCK_SIZE, GREEDY, IMAGE_ID, PER_TILE, answer, make_core, make_picture, make_request, run
from tilewise.engine.core import EngineCore
from tilewise.types import FinishReason, GenerationConfig, PreparedImage, Request, TilingParameters

# Grids whose tiles, thumbnail included, are 1 and 3 to 13; a grid of one tile has no thumbnail.
GRIDS = ((1, 1), (2, 1), (3, 1), (2, 2), (1, 5), (3, 2), (7, 1), (2, 4), (3, 3), (5, 2), (1, 11), (4, 3))
NO_THUMBNAIL = TilingParameters(tile_size=28, use_thumbnail=False)


def make_text(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(IMAGE_ID), k=length)


def make_mixed(count: int, generation: GenerationConfig = GREEDY) -> list[Request]:
    """Text alone, one picture of 1 to 13 tiles, two pictures; some share their beginnings."""
    pictures = [make_picture(number, *grid) for number, grid in enumerate(GRIDS)]
    pictures.append(make_picture(99, 2, 1, NO_THUMBNAIL))
    requests: list[Request] = []
    for number in range(count):
        opening, ending = make_text(number % 3, BLOCK_SIZE + number % 3), make_text(100 + number, 1 + number % 9)
        picture = pictures[number % len(pictures)]
        parts: list[list[int] | PreparedImage]
        if number % 8 == 7:
            parts = [make_text(number, 3 + number * 2)]
        elif number % 8 == 6:
            parts = [opening, picture, [1], pictures[number % 3], ending]
        else:
            parts = [opening, picture, ending]
        requests.append(make_request(f"r{number}", parts, generation))
    return requests


MIXED = make_mixed(32)


def answer_alone(requests: list[Request], **options: object) -> dict[str, list[int]]:
    """Every request in an engine that does nothing else, keeps nothing and computes the prompt in one piece."""
    alone: dict[str, list[int]] = {}
    core = make_core(max_batch_size=1, enable_prefix_caching=False, max_prefill_tiles=64, **options)
    for request in requests:
        alone |= answer(core, [request])
    assert core.scheduler.counters["prefix_hits"] == core.scheduler.counters["preemptions"] == 0
    return alone


@pytest.fixture(scope="module")
def alone() -> dict[str, list[int]]:
    return answer_alone(MIXED)


def test_the_tiny_model_sees_text_and_every_tile(alone: dict[str, list[int]]) -> None:
    assert {image.num_tiles for request in MIXED for image in request.images} == set(range(1, 14))
    assert len({tuple(ids) for ids in alone.values()}) == len(MIXED), "answers that never vary prove nothing"
    core = make_core()
    for number, (columns, rows) in enumerate(GRIDS):
        same_tiles_but_last = [make_request("a", [[1], make_picture(number, columns, rows), [2]])]
        other = make_request("b", [[1], make_picture(number + 50, columns, rows), [2]])
        assert answer(core, same_tiles_but_last)["a"] != answer(core, [other])["b"]


@pytest.mark.parametrize("max_prefill_tiles", [1, 3, 64])
@pytest.mark.parametrize("is_cached", [True, False])
def test_a_batch_of_32_with_pictures_answers_as_each_alone(
    alone: dict[str, list[int]], is_cached: bool, max_prefill_tiles: int
) -> None:
    core = make_core(max_prefill_tiles=max_prefill_tiles, enable_prefix_caching=is_cached)
    assert answer(core, MIXED) == alone
    assert bool(core.scheduler.counters["prefix_hits"]) == is_cached


@pytest.mark.parametrize(("chunk", "batch"), [(1, 1), (5, 5), (17, 8), (64, 32)])
def test_chunks_of_any_size_answer_alike(alone: dict[str, list[int]], chunk: int, batch: int) -> None:
    core = make_core(max_prefill_token_num=chunk, max_batch_size=batch, max_prefill_tiles=1)
    assert core.scheduler.budgets.max_step_tokens == chunk
    assert answer(core, MIXED) == alone


def test_every_chunk_size_from_one_to_the_prompts_length_answers_alike() -> None:
    request = make_request("r", [make_text(1, 5), make_picture(1, 3, 2), [1], make_picture(2), make_text(2, 6)])
    expected = answer_alone([request])
    for chunk in range(1, len(request.token_ids) + 1):
        core = make_core(max_prefill_token_num=chunk, max_batch_size=1)
        assert answer(core, [request]) == expected, f"chunks of {chunk}"


def test_64_requests_in_room_for_two_are_preempted_and_answer_as_alone() -> None:
    requests = make_mixed(64, replace(GREEDY, max_new_tokens=24))
    core = make_core(num_blocks=2 * 10, session_len=10 * BLOCK_SIZE, max_batch_size=16)
    assert answer(core, requests) == answer_alone(requests)
    assert core.scheduler.counters["preemptions"] > 0
    assert core.scheduler.kv.pool.num_available == 20


def test_a_warm_cache_answers_as_a_cold_one(alone: dict[str, list[int]]) -> None:
    core = make_core()
    assert answer(core, MIXED) == answer(core, MIXED[::-1]) == alone


def test_a_cache_that_is_too_small_for_the_pictures_answers_alike(alone: dict[str, list[int]]) -> None:
    core = make_core(num_blocks=32, num_tile_rows=3, max_prefill_tiles=3)
    assert answer(core, MIXED) == answer(core, MIXED) == alone
    assert core.scheduler.counters["tiles_encoded"] > sum(i.num_tiles for r in MIXED for i in r.images)


def ask(core: EngineCore, *parts: list[int] | PreparedImage, namespace: str = "") -> tuple[int, int, int, list[int]]:
    """Ask for one token: (prompt tokens computed, tiles encoded, tokens from the cache, answer)."""
    before = core.scheduler.counters.copy()
    request = make_request("r", parts, replace(GREEDY, max_new_tokens=1), namespace=namespace)
    (output,) = run(core, [request])["r"]
    after = core.scheduler.counters
    computed = after["tokens_computed"] - before["tokens_computed"]
    assert computed + output.cached_tokens == len(request.token_ids)
    return computed, after["tiles_encoded"] - before["tiles_encoded"], output.cached_tokens, list(output.token_ids)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_same_picture_asked_again_computes_less_than_two_blocks_and_no_tile(grid: tuple[int, int]) -> None:
    core = make_core()
    picture = make_picture(1, *grid)
    opening = make_text(1, 40)
    computed, tiles, cached, first = ask(core, opening, picture, [1, 2, 3])
    assert (computed, tiles, cached) == (43 + PER_TILE * picture.num_tiles, picture.num_tiles, 0)
    computed, tiles, _, again = ask(core, opening, picture, [1, 2, 3])
    assert computed < 2 * BLOCK_SIZE
    assert tiles == 0
    assert again == first
    computed, tiles, *_ = ask(core, opening, picture, [9, 8, 7, 6])
    assert computed < 2 * BLOCK_SIZE
    assert tiles == 0


def test_a_prefix_hit_inside_an_image_encodes_again_only_the_tiles_that_were_evicted() -> None:
    core = make_core(num_tile_rows=13, max_prefill_tiles=13)
    picture = make_picture(1, 4, 3)
    assert picture.num_tiles * PER_TILE % BLOCK_SIZE, "the last hit must end inside the picture"
    *_, cold = ask(core, picture, [1, 2])
    ask(core, make_picture(2, 4, 3), [1, 2])
    computed, tiles, cached, again = ask(core, picture, [1, 2])
    assert cached == picture.num_tiles * PER_TILE // BLOCK_SIZE * BLOCK_SIZE
    assert 0 < computed < BLOCK_SIZE
    assert tiles == picture.num_tiles - cached // PER_TILE
    assert again == cold


def test_a_picture_at_the_prompts_end_is_seen_to_its_last_position() -> None:
    picture = make_picture(1, 2, 2)
    expected = answer_alone([make_request("r", [[1, 2], picture])])
    for chunk in (1, 2, 21):
        core = make_core(max_prefill_token_num=chunk, max_batch_size=1)
        assert answer(core, [make_request("r", [[1, 2], picture])]) == expected


def test_equal_bytes_of_other_shape_or_tiling_never_hit_each_other() -> None:
    tall = make_picture(1, size=(30, 150))
    wide = make_picture(1, size=(150, 30))
    assert tall.pixels == wide.pixels
    coarse = make_picture(1, size=(150, 30), tiling=TilingParameters(max_tiles=3, tile_size=28))
    # Fewer tiles allowed, but the same grid comes out: still another picture.
    same_grid = make_picture(1, size=(150, 30), tiling=TilingParameters(max_tiles=11, tile_size=28))
    assert (same_grid.columns, same_grid.rows) == (wide.columns, wide.rows)
    core = make_core()
    opening = make_text(1, 2 * BLOCK_SIZE)
    ask(core, opening, tall, [1])
    for picture in (wide, coarse, same_grid):
        _, tiles, cached, _ = ask(core, opening, picture, [1])
        assert cached == 2 * BLOCK_SIZE, "the words before the picture are shared, and nothing of the picture"
        assert tiles == picture.num_tiles


def test_two_namespaces_never_share_a_block_or_a_tile() -> None:
    core = make_core()
    picture = make_picture(1, 3, 1)
    parts = (make_text(1, 40), picture, [1, 2])
    first = ask(core, *parts, namespace="a")
    for other in ("b", "", "\ud800"):
        assert ask(core, *parts, namespace=other)[1:3] == (picture.num_tiles, 0)
    _, _, cached, again = ask(core, *parts, namespace="a")
    assert cached > 0
    assert again == first[3]


def test_caching_off_computes_everything_again() -> None:
    core = make_core(enable_prefix_caching=False)
    parts = (make_text(1, 40), make_picture(1, 3, 1), [1, 2])
    assert ask(core, *parts)[2] == ask(core, *parts)[2] == 0
    assert len(core.scheduler.kv.prefix) == 0


def test_a_seed_repeats_in_any_company() -> None:
    sampled = GenerationConfig(max_new_tokens=12, do_sample=True, top_k=40, top_p=0.95, temperature=1.2)
    requests = [
        replace(request, generation=replace(sampled, random_seed=number)) for number, request in enumerate(MIXED)
    ]
    expected = answer_alone(requests)
    assert len({tuple(ids) for ids in expected.values()}) == len(requests)
    core = make_core(num_blocks=40, session_len=400, max_batch_size=16)
    assert answer(core, requests) == expected
    assert core.scheduler.counters["preemptions"] > 0
    assert answer(make_core(max_prefill_token_num=9, max_batch_size=9), requests[::-1]) == expected


def test_answers_of_another_seed_or_of_none_differ() -> None:
    sampled = GenerationConfig(max_new_tokens=12, do_sample=True, top_k=0, temperature=2.0)
    seeds = (1, 2, None, None)
    core = make_core()
    requests = [make_request(f"r{n}", [[1, 2, 3]], replace(sampled, random_seed=seed)) for n, seed in enumerate(seeds)]
    assert len({tuple(ids) for ids in answer(core, requests).values()}) == len(seeds)


def test_an_answer_ends_with_stop_at_a_stop_id_and_with_length_at_its_bound() -> None:
    core = make_core()
    (free,) = answer(core, [make_request("r", [[1, 2, 3]])]).values()
    stop = next(token_id for number, token_id in enumerate(free) if number and token_id not in free[:number])
    heard = run(core, [make_request("s", [[1, 2, 3]], stop_token_ids=(stop,)), make_request("l", [[1, 2, 3]])])
    assert [token_id for output in heard["s"] for token_id in output.token_ids] == free[: free.index(stop) + 1]
    assert heard["s"][-1].finish_reason is FinishReason.STOP
    assert heard["l"][-1].finish_reason is FinishReason.LENGTH
    assert sum(len(output.token_ids) for output in heard["l"]) == GREEDY.max_new_tokens


def test_no_stop_id_is_sampled_before_the_fewest_new_tokens() -> None:
    core = make_core()
    (free,) = answer(core, [make_request("r", [[1, 2, 3]])]).values()
    generation = replace(GREEDY, min_new_tokens=4, max_new_tokens=40)
    heard = run(core, [make_request("r", [[1, 2, 3]], generation, stop_token_ids=tuple(set(free)))])["r"]
    ids = [token_id for output in heard for token_id in output.token_ids]
    assert not set(ids[:4]) & set(free)
    assert len(ids) > 4


def test_the_session_length_bounds_the_answer() -> None:
    core = make_core(session_len=BLOCK_SIZE)
    (ids,) = answer(core, [make_request("r", [[1] * (BLOCK_SIZE - 3)])]).values()
    assert len(ids) == 3
