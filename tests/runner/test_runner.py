import torch

from tests.engine.tiny import PER_TILE, make_core, make_picture, make_request
from tilewise.scheduling.steps import TileJob


def test_each_job_writes_its_own_tile_to_its_own_row_and_no_other() -> None:
    together, apart = make_core(num_tile_rows=8).runner, make_core(num_tile_rows=8).runner
    first, second = make_picture(1, 2, 1), make_picture(2)
    jobs = (TileJob("", first, 2, 5), TileJob("", second, 0, 3), TileJob("", first, 0, 1))
    for runner in (together, apart):
        runner.caches.tiles.fill_(7.0)
    with torch.inference_mode():
        together.encode(jobs)
        for job in reversed(jobs):
            apart.encode((job,))
    written = together.caches.tiles
    assert written.shape == (8, PER_TILE, 32)
    assert torch.allclose(written, apart.caches.tiles, atol=1e-4, rtol=1e-4)
    assert (written[[0, 2, 4, 6, 7]] == 7.0).all()
    for row, other in ((1, 3), (3, 5), (5, 1)):
        assert not torch.allclose(written[row], written[other], atol=0.1)


def test_a_step_of_a_chunk_that_ends_no_prompt_samples_nothing() -> None:
    core = make_core(max_prefill_token_num=2, max_batch_size=1)
    core.scheduler.add(make_request("r", [[1, 2, 3, 4, 5]]))
    counts = []
    for _ in range(3):
        plan = core.scheduler.schedule()
        assert plan is not None
        sampled = core.runner.run(plan)
        counts.append(len(sampled))
        core.scheduler.commit(plan, sampled)
    assert counts == [0, 0, 1]
