import pytest
from training.scenes.sample import Turn
from training.scores import interval, is_right, overlap, show_table, tally

BOX = Turn("box", "en", "Where?", "<ref>red star</ref><box>[[100, 100, 200, 200]]</box>")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("<ref>red star</ref><box>[[100, 100, 200, 200]]</box>", True),
        ("<ref>red star</ref><box>[[110, 110, 210, 210]]</box>", True),
        ("<ref>red star</ref><box>[[150, 150, 250, 250]]</box>", False),
        ("<ref>blue star</ref><box>[[100, 100, 200, 200]]</box>", False),
        ("red star [[100, 100, 200, 200]]", False),
        ("<ref>red star</ref><box>[[100, 100, 200, 200], [0, 0, 5, 5]]</box>", False),
        ("", False),
    ],
)
def test_a_box_is_right_by_label_and_overlap(answer, right):
    assert is_right(BOX, answer) == right


def test_other_answers_are_right_to_the_letter():
    turn = Turn("latin", "en", "?", "AB12C")
    assert is_right(turn, "AB12C")
    assert not is_right(turn, "ab12c")
    assert not is_right(turn, "AB12CD")


def test_overlap_of_boxes():
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10, 10), (20, 20, 30, 30)) == 0.0
    assert overlap((5, 5, 5, 5), (5, 5, 5, 5)) == 0.0


# Source: Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion", eq. 4, worked by hand.
@pytest.mark.parametrize(
    ("right", "number", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_interval_is_wilsons(right, number, low, high):
    assert interval(right, number) == pytest.approx((low, high), abs=1e-4)


def test_scores_are_counted_by_task_and_language():
    pairs = [(Turn("latin", "en", "?", "A"), "A"), (Turn("latin", "zh", "?", "A"), "B"), (BOX, "no")]
    scores = tally(pairs)
    assert [(s.task, s.language, s.num_right, s.number) for s in scores] == [
        ("latin", "en", 1, 1),
        ("latin", "zh", 0, 1),
        ("box", "en", 0, 1),
    ]
    assert "latin" in show_table(scores)
