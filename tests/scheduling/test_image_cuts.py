from tests.property.simulation import PICTURES
from tilewise.scheduling.image_cuts import ImageCuts

ONE, TWO, FOUR = PICTURES


def test_pictures_are_begun_in_the_order_they_were_asked_for_and_within_the_tiles_allowed() -> None:
    cuts = ImageCuts(max_tiles=3)
    assert [cuts.ask(image) for image in (TWO, FOUR, ONE, TWO)] == [False] * 4
    assert cuts.take_wanted() == [TWO], "a smaller one does not overtake the one that has no room"
    assert cuts.take_wanted() == []
    cuts.keep({FOUR.digest, ONE.digest})
    assert cuts.take_wanted() == [FOUR], "one is allowed, however many tiles it has"


def test_a_picture_is_cut_once_it_is_said_to_be_and_for_as_long_as_it_is_kept() -> None:
    cuts = ImageCuts(max_tiles=8)
    cuts.ask(ONE)
    cuts.take_wanted()
    assert not cuts.ask(ONE)
    assert cuts.mark_ready(ONE.digest)
    assert cuts.ask(ONE)
    assert cuts.take_wanted() == []
    cuts.keep({ONE.digest})
    assert cuts.ask(ONE)
    cuts.keep(set())
    assert not cuts.ask(ONE)
    assert cuts.take_wanted() == [ONE]


def test_what_nobody_needs_is_named_once_if_it_was_begun_and_is_ready_for_nobody() -> None:
    cuts = ImageCuts(max_tiles=8)
    cuts.ask(ONE)
    cuts.keep(set())
    assert cuts.take_wanted() == cuts.take_dropped() == [], "nobody began it"
    cuts.ask(TWO)
    cuts.take_wanted()
    cuts.keep(set())
    assert cuts.take_dropped() == [TWO.digest]
    assert cuts.take_dropped() == []
    assert not cuts.mark_ready(TWO.digest)
    cuts.check_integrity()
