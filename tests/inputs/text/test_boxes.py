import pytest

from tilewise.inputs.text.boxes import parse_boxes
from tilewise.types import Box


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("no boxes", ()),
        ("the <ref>cat</ref><box>[[1, 2, 3, 4]]</box>.", (Box("cat", 1, 2, 3, 4),)),
        (
            "<ref>猫</ref><box>[[0,0,1000,1000],[ 5 , 6 , 7 , 8 ]]</box>",
            (Box("猫", 0, 0, 1000, 1000), Box("猫", 5, 6, 7, 8)),
        ),
        (
            "<ref>a</ref><box>[[1, 2, 3, 4]]</box> and <ref>b</ref><box>[[5, 6, 7, 8]]</box>",
            (Box("a", 1, 2, 3, 4), Box("b", 5, 6, 7, 8)),
        ),
        ("<ref>a</ref><box>[[1, 2, 3], [1, 2, 3, 4]]</box>", (Box("a", 1, 2, 3, 4),)),
        ("<ref>a</ref><box>[[3, 2, 1, 4], [1, 4, 3, 2], [1, 2, 3, 1001]]</box>", ()),
        ("<ref>a</ref><box>[[1, 2, 3, 4", ()),
        ("<ref>a<ref>b</ref><box>[[1, 2, 3, 4]]</box>", (Box("b", 1, 2, 3, 4),)),
        ("<ref></ref><box>[[1, 2, 3, 4]]</box>", ()),
        ("<ref>a</ref> <quad>[[1, 2, 3, 4]]</quad>", ()),
        ("<box>[[1, 2, 3, 4]]</box>", ()),
        ("<ref>a</ref><box>[[-1, 2, 3, 4], [1.5, 2, 3, 4], [٣, 2, 3, 4]]</box>", ()),
    ],
)
def test_well_formed_regions_are_read_and_others_left_out(text, boxes):
    assert parse_boxes(text) == boxes


@pytest.mark.parametrize(
    "unit", ["<ref>", "<ref>a</ref><box>[[", "[", "<ref>a</ref><box>[[1, 2, 3, 4]]", "</ref><box>"]
)
def test_a_million_characters_of_fragments_end(unit):
    assert parse_boxes(unit * (1_000_000 // len(unit))) == ()
