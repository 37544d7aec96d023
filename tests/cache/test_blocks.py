import pytest

from tilewise.cache.blocks import BlockPool


def test_released_blocks_with_an_identity_keep_their_content_until_nothing_is_free() -> None:
    evicted: list[int] = []
    pool = BlockPool(4, on_evict=evicted.append)
    first = pool.allocate(2)
    pool.release(first, is_identified=lambda block: True)
    assert pool.num_available == 4
    second = pool.allocate(2)
    assert not set(first) & set(second)
    assert not evicted
    assert pool.allocate(1) == [first[0]]
    assert evicted == [first[0]]


def test_a_sequence_released_from_its_end_is_evicted_from_its_end() -> None:
    evicted: list[int] = []
    pool = BlockPool(3, on_evict=evicted.append)
    blocks = pool.allocate(3)
    pool.release(reversed(blocks), is_identified=lambda block: True)
    pool.allocate(2)
    assert evicted == [blocks[2], blocks[1]]


def test_a_block_that_is_retained_again_is_not_evicted() -> None:
    pool = BlockPool(2)
    kept, other = pool.allocate(2)
    pool.release([kept, other], is_identified=lambda block: True)
    pool.retain(kept)
    assert pool.allocate(1) == [other]
    assert not pool.can_allocate(1)


def test_a_shared_block_is_available_only_after_its_last_holder() -> None:
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.retain(block)
    pool.release([block])
    assert pool.num_held == 1
    pool.release([block])
    assert pool.num_available == 1


def test_nothing_is_handed_out_where_too_little_is_left() -> None:
    pool = BlockPool(2)
    held = pool.allocate(1)
    with pytest.raises(ValueError, match="2 blocks wanted, 1 available"):
        pool.allocate(2)
    pool.check_integrity([held])
    assert pool.num_available == 1


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda pool: pool._free.append(pool._free[0]), "free twice"),
        (lambda pool: setattr(pool, "num_blocks", 5), "lost"),
        (lambda pool: pool._idle.update({pool._free[0]: None}), "two states"),
        (lambda pool: pool.allocate(1), "add up"),
    ],
)
def test_integrity_notices_damage(damage, complaint: str) -> None:
    pool = BlockPool(4)
    pool.check_integrity()
    damage(pool)
    with pytest.raises(AssertionError, match=complaint):
        pool.check_integrity()
