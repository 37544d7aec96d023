import pytest

from tilewise.cache.tiles import TileCache

A, B, C = (b"a", 0), (b"a", 1), (b"b", 0)


def test_a_tile_keeps_its_row_until_the_row_is_needed() -> None:
    cache = TileCache(2)
    row = cache.reserve(A)
    cache.unpin()
    assert cache.find(A) == row
    assert cache.find(B) is None


def test_the_least_recently_used_tile_makes_room() -> None:
    cache = TileCache(2)
    cache.reserve(A)
    row = cache.reserve(B)
    cache.unpin()
    cache.find(A)
    cache.unpin()
    assert cache.reserve(C) == row
    assert cache.find(B) is None


def test_what_a_step_uses_stays_until_the_step_ends() -> None:
    cache = TileCache(2)
    cache.reserve(A)
    cache.reserve(B)
    assert cache.reserve(C) is None
    cache.unpin()
    cache.find(A)
    assert cache.reserve(C) is not None
    assert cache.find(A) is not None
    assert cache.reserve(B) is None


def test_a_forgotten_tile_frees_its_row_even_while_pinned() -> None:
    cache = TileCache(1)
    row = cache.reserve(A)
    cache.forget(A)
    cache.forget(A)
    assert cache.find(A) is None
    assert cache.reserve(B) == row


def test_a_cache_without_rows_holds_nothing() -> None:
    assert TileCache(0).reserve(A) is None


def test_integrity_notices_a_row_that_is_lost() -> None:
    cache = TileCache(2)
    cache.reserve(A)
    cache.check_integrity()
    cache.num_rows += 1
    with pytest.raises(AssertionError, match="lost"):
        cache.check_integrity()
