"""What owners may hold of something that they share."""

from hypothesis import given
from hypothesis import strategies as st

from tilewise.room import SharedRoom


def fill(room: SharedRoom, owner: str) -> int:
    while room.fits(1) and room.fits_share(owner, 1):
        room.take(owner, 1)
    return room.held(owner)


def test_alone_an_owner_holds_half_and_the_next_half_of_what_is_left() -> None:
    room = SharedRoom(32, is_shared=True)
    assert [fill(room, owner) for owner in "abc"] == [16, 8, 4]


def test_owners_that_fill_it_together_hold_equal_parts() -> None:
    room = SharedRoom(300, is_shared=True)
    for _ in range(300):
        for owner in "ab":
            if room.fits_share(owner, 1):
                room.take(owner, 1)
    assert (room.held("a"), room.held("b")) == (100, 100)


def test_what_nobody_shares_one_may_fill() -> None:
    assert fill(SharedRoom(32), "a") == 32


@given(
    capacity=st.integers(1, 50),
    asked=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 20), st.booleans()), max_size=60),
)
def test_no_flood_takes_what_a_newcomer_needs_and_all_is_given_back(
    capacity: int, asked: list[tuple[str, int, bool]]
) -> None:
    room, held = SharedRoom(capacity, is_shared=True), list[tuple[str, int]]()
    for owner, amount, gives_back in asked:
        if gives_back and held:
            room.give_back(*held.pop(0))
        elif room.fits(amount) and room.fits_share(owner, amount):
            has_some = room.held(owner) > 0
            room.take(owner, amount)
            held.append((owner, amount))
            assert not has_some or room.held(owner) <= capacity - room.total
        assert room.total == sum(amount for _, amount in held)
    for owner, amount in held:
        room.give_back(owner, amount)
    assert (room.total, [room.held(owner) for owner in "abcd"]) == (0, [0] * 4)
