from tests.property.simulation import PICTURES
from tilewise.scheduling.image_cuts import ImageCuts
from tilewise.types import PreparedImage

ONE, TWO, FOUR = PICTURES
PIXELS = 28 * 28


def take(cuts: ImageCuts, *images: PreparedImage) -> list[PreparedImage]:
    """What is begun of what a step asks for."""
    for image in images:
        cuts.ask(image)
    return cuts.take_wanted()


def test_pictures_are_begun_in_the_order_in_which_the_last_step_asked_for_them() -> None:
    cuts = ImageCuts(4 * PIXELS, max_tiles=8)
    assert take(cuts, TWO, FOUR, ONE) == [TWO], "a smaller one does not overtake the one that has no room"
    assert take(cuts, ONE, FOUR) == [ONE], "what was asked for before is forgotten"
    assert take(cuts) == []


def test_one_picture_is_allowed_however_large() -> None:
    cuts = ImageCuts(1, max_tiles=1)
    assert take(cuts, FOUR, ONE) == [FOUR]
    assert take(cuts, ONE) == []


def test_pixels_count_until_a_picture_is_cut_and_tiles_until_it_is_dropped() -> None:
    cuts = ImageCuts(2 * PIXELS, max_tiles=3)
    assert take(cuts, TWO, ONE) == [TWO]
    assert cuts.mark_ready(TWO.digest)
    assert take(cuts, ONE, FOUR) == [ONE]
    assert cuts.mark_ready(ONE.digest)
    assert take(cuts, FOUR) == []
    cuts.keep(set())
    assert take(cuts, FOUR) == [FOUR]


def test_a_picture_is_cut_once_it_is_said_to_be_and_for_as_long_as_it_is_kept() -> None:
    cuts = ImageCuts(9 * PIXELS, max_tiles=8)
    assert take(cuts, ONE) == [ONE]
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
    cuts = ImageCuts(9 * PIXELS, max_tiles=8)
    cuts.ask(ONE)
    cuts.keep(set())
    assert cuts.take_dropped() == [], "nobody began it"
    assert take(cuts, TWO) == [ONE, TWO]
    cuts.keep({ONE.digest})
    assert cuts.take_dropped() == [TWO.digest]
    assert cuts.take_dropped() == []
    assert not cuts.mark_ready(TWO.digest)
    cuts.check_integrity()
