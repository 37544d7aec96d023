import pytest
import torch

from tilewise.runner.batch import StepBatch, build_batch, lay_out
from tilewise.scheduling.steps import Chunk, ImageRows, StepPlan

CPU = torch.device("cpu")


def make_plan(decodes: tuple[Chunk, ...] = (), prefills: tuple[Chunk, ...] = ()) -> StepPlan:
    return StepPlan(1, (), decodes, prefills, (), ())


def build(plan: StepPlan) -> StepBatch:
    rows = {sequence_id: row for row, sequence_id in enumerate((7, 8))}
    return build_batch(lay_out(plan, 4, rows), CPU)


def test_decodes_come_first_and_every_token_knows_its_position_and_slot() -> None:
    plan = make_plan(
        decodes=(
            Chunk(7, 4, 5, (40,), (3, 1), is_sampled=True),
            Chunk(8, 1, 2, (41,), (5,), is_sampled=True),
        ),
        prefills=(
            Chunk(9, 2, 6, (50, 51, 52, 53), (2, 0), is_sampled=False),
            Chunk(6, 0, 3, (60, 61, 62), (4,), is_sampled=True),
        ),
    )
    layout, batch = lay_out(plan, 4), build(plan)
    assert batch.token_ids.tolist() == [40, 41, 50, 51, 52, 53, 60, 61, 62]
    assert batch.attention.positions.tolist() == [4, 1, 2, 3, 4, 5, 0, 1, 2]
    assert batch.attention.slots.tolist() == [4, 21, 10, 11, 0, 1, 16, 17, 18]
    assert batch.attention.num_decodes == 2
    assert batch.attention.block_table.tolist() == [[3, 1], [5, -1]]
    assert batch.attention.lengths.tolist() == [5, 2]
    assert [(c.offset, c.start, c.end) for c in batch.attention.chunks] == [(2, 2, 6), (6, 0, 3)]
    assert batch.attention.chunk_table is not None
    assert batch.attention.chunk_table.tolist() == [[2, 0], [4, -1]]
    assert batch.attention.items is not None
    assert batch.attention.items.tolist() == [[2, 4, 0, 2]], "the chunk that continues"
    assert layout.list_items().tolist() == [[2, 4, 0, 2], [6, 3, 1, 0]]
    assert layout.sampled_ids == (7, 8, 6)
    assert batch.last.tolist() == [0, 1, 8]


def test_image_rows_land_on_their_positions_in_the_step() -> None:
    first = Chunk(1, 0, 4, (9, 9, 9, 9), (0,), is_sampled=False, image_rows=(ImageRows(1, 3, 10), ImageRows(3, 4, 2)))
    second = Chunk(2, 5, 8, (9, 9, 9), (1, 2), is_sampled=True, image_rows=(ImageRows(5, 7, 31),))
    batch = build(make_plan(prefills=(first, second)))
    assert batch.image_rows.tolist() == [-1, 10, 11, 2, 31, 32, -1]


@pytest.mark.parametrize("decodes", [(), (Chunk(1, 0, 1, (3,), (0,), is_sampled=True),)])
def test_either_half_of_a_step_may_be_empty(decodes: tuple[Chunk, ...]) -> None:
    prefills = () if decodes else (Chunk(1, 0, 2, (3, 4), (0,), is_sampled=False),)
    batch = build(make_plan(decodes, prefills))
    assert batch.attention.block_table.shape == (len(decodes), len(decodes))
    assert batch.image_rows.eq(-1).all()
    assert len(batch.last) == len(decodes)


def test_a_token_that_is_not_known_yet_names_its_row_of_the_last_step_s_samples() -> None:
    decodes = (
        Chunk(8, 1, 2, None, (5,), is_sampled=True),
        Chunk(9, 4, 5, (40,), (3, 1), is_sampled=True),
        Chunk(7, 2, 3, None, (2,), is_sampled=True),
    )
    batch = build(make_plan(decodes))
    assert batch.sources.tolist() == [1, -1, 0]
    assert batch.token_ids[1] == 40
