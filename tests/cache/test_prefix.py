import pytest

from tests.engine.tiny import make_picture, make_request
from tilewise.cache.prefix import PrefixCache, extend_digests
from tilewise.types import Request, TilingParameters


def digests_of(request: Request, size: int = 4) -> list[bytes]:
    digests: list[bytes] = []
    extend_digests(digests, request, request.token_ids, size)
    return digests


def test_a_block_has_an_identity_of_128_bits_only_once_it_is_full() -> None:
    assert [len(digest) for digest in digests_of(make_request("r", [[1] * 11]))] == [16, 16]
    assert digests_of(make_request("r", [[1, 2, 3]])) == []


def test_a_digest_covers_everything_before_it() -> None:
    whole = digests_of(make_request("r", [[1, 2, 3, 4, 5, 6, 7, 8]]))
    other_head = digests_of(make_request("r", [[9, 2, 3, 4, 5, 6, 7, 8]]))
    assert whole[0] != other_head[0]
    assert whole[1] != other_head[1]
    repeated = digests_of(make_request("r", [[1, 2, 3, 4, 1, 2, 3, 4]]))
    assert repeated[0] != repeated[1]


def test_ids_cannot_run_into_each_other() -> None:
    assert digests_of(make_request("r", [[0, 1, 256, 0]])) != digests_of(make_request("r", [[1, 0, 0, 256]]))


def test_blocks_before_a_picture_are_shared_and_those_from_it_on_are_not() -> None:
    def ask(picture_seed: int) -> list[bytes]:
        return digests_of(make_request("r", [[1] * 6, make_picture(picture_seed, 2, 1), [2] * 6]))

    one, other = ask(1), ask(2)
    assert one[0] == other[0]
    assert all(left != right for left, right in zip(one[1:], other[1:], strict=True))
    assert one == ask(1)


def test_a_picture_is_not_the_text_that_holds_its_place() -> None:
    with_picture = make_request("r", [make_picture(1)])
    without = Request("r", with_picture.token_ids)
    assert digests_of(with_picture) != digests_of(without)


def test_the_same_picture_cut_otherwise_is_another() -> None:
    whole = make_request("r", [make_picture(1, 2, 1)])
    fewer = make_picture(1, 2, 1, TilingParameters(max_tiles=2, tile_size=28))
    assert fewer.num_tiles == whole.images[0].num_tiles
    assert digests_of(whole)[0] != digests_of(make_request("r", [fewer]))[0]


def test_namespaces_share_nothing_from_the_first_block_on() -> None:
    digests = [digests_of(make_request("r", [[1, 2, 3, 4]], namespace=name))[0] for name in ("", "a", "b", "ab")]
    assert len(set(digests)) == 4


def test_the_first_of_two_equal_blocks_keeps_the_identity() -> None:
    cache = PrefixCache()
    cache.publish(b"a", 1)
    cache.publish(b"a", 2)
    cache.publish(b"b", 1)
    assert (cache.find(b"a"), cache.find(b"b")) == (1, None)
    assert not cache.is_identified(2)


def test_a_forgotten_block_is_found_no_more_and_may_get_another_identity() -> None:
    cache = PrefixCache()
    cache.publish(b"a", 1)
    cache.forget(1)
    cache.forget(1)
    assert cache.find(b"a") is None
    cache.publish(b"b", 1)
    assert cache.find(b"b") == 1
    assert len(cache) == 1


def test_integrity_notices_maps_that_disagree() -> None:
    cache = PrefixCache()
    cache.publish(b"a", 1)
    cache._block_of[b"a"] = 2
    with pytest.raises(AssertionError):
        cache.check_integrity()
