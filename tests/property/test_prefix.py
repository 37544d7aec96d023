"""The prefix cache against naive dictionaries: whole prefixes as keys instead of chained digests."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.property.simulation import PICTURES, make_request, read_inputs
from tilewise.cache.prefix import PrefixCache, extend_digests
from tilewise.types import Request

DIGESTS = [bytes([number]) * 16 for number in range(6)]
digests = st.sampled_from(DIGESTS)
blocks = st.integers(0, 5)

# Few parts, so that equal prefixes and near misses are common; 7 is the id that fills pictures too.
parts = st.lists(st.sampled_from((1, 2, 7, *PICTURES)), min_size=1, max_size=7)
requests = st.builds(
    lambda parts, namespace: make_request("r", parts, namespace=namespace), parts, st.sampled_from(("", "a", "ab"))
)


class Identities(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache()
        self.block_of: dict[bytes, int] = {}

    @rule(digest=digests, block=blocks)
    def publish(self, digest: bytes, block: int) -> None:
        self.cache.publish(digest, block)
        if digest not in self.block_of and block not in self.block_of.values():
            self.block_of[digest] = block

    @rule(block=blocks)
    def forget(self, block: int) -> None:
        self.cache.forget(block)
        self.block_of = {digest: held for digest, held in self.block_of.items() if held != block}

    @invariant()
    def the_dictionary_agrees(self) -> None:
        self.cache.check_integrity()
        assert len(self.cache) == len(self.block_of)
        assert [self.cache.find(digest) for digest in DIGESTS] == [self.block_of.get(digest) for digest in DIGESTS]
        assert {block for block in range(6) if self.cache.is_identified(block)} == set(self.block_of.values())


class ManyIdentities(Identities):
    pass


TestIdentities = Identities.TestCase
TestIdentities.settings = settings(max_examples=100, stateful_step_count=40)
TestManyIdentities = pytest.mark.slow(ManyIdentities.TestCase)
TestManyIdentities.settings = settings(max_examples=1000, stateful_step_count=80)


def naive_keys(request: Request, block_size: int) -> list[object]:
    """Everything that the keys and values of each full block depend on, unhashed."""
    inputs = read_inputs(request)
    ends = range(block_size, len(inputs) + 1, block_size)
    return [(request.namespace, tuple(inputs[:end])) for end in ends]


def digests_of(request: Request, token_ids: Sequence[int], size: int) -> list[bytes]:
    digests: list[bytes] = []
    extend_digests(digests, request, token_ids, size)
    return digests


@given(st.lists(requests, min_size=1, max_size=6), st.integers(1, 5))
def test_digests_are_equal_exactly_where_the_naive_keys_are(requests: list[Request], block_size: int) -> None:
    naive: dict[object, bytes] = {}
    for request in requests:
        found = digests_of(request, request.token_ids, block_size)
        expected = naive_keys(request, block_size)
        assert len(found) == len(expected)
        for key, digest in zip(expected, found, strict=True):
            assert naive.setdefault(key, digest) == digest
    assert len(set(naive.values())) == len(naive), "two prefixes share a digest"


@given(requests, st.lists(st.integers(0, 9), max_size=8), st.integers(1, 5))
def test_a_longer_sequence_keeps_the_digests_of_its_prefix(request: Request, answer: list[int], size: int) -> None:
    short = digests_of(request, request.token_ids, size)
    long = digests_of(request, [*request.token_ids, *answer], size)
    assert long[: len(short)] == short
    extend_digests(short, request, [*request.token_ids, *answer], size)
    assert short == long
    assert len(long) == (len(request.token_ids) + len(answer)) // size
    assert all(len(digest) >= 16 for digest in long)
