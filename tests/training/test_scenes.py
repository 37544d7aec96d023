import re

import numpy as np
import pytest
from PIL import Image
from training.scenes import EVALUATED, LANGUAGES, create_question, create_sample, create_scene
from training.scenes.letters import CHINESE_FONTS, CODE, COMMON, LATIN_FONTS, load_font
from training.scenes.sample import Canvas, Chance, Sample, choose_canvas
from training.scenes.shapes import ShapeScene
from training.scenes.texts import TextScene
from training.scenes.words import BACKGROUNDS, COLOURS, SHAPES, WORDINGS

from tilewise.inputs.text.boxes import parse_boxes

COUNTS = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 13, 14)


def contents(sample: Sample) -> tuple[object, ...]:
    return sample.turns, [picture.image.tobytes() for picture in sample.pictures]


@pytest.mark.parametrize("count", COUNTS)
def test_a_sample_is_a_function_of_its_name(count):
    assert contents(create_sample("a/1", count)) == contents(create_sample("a/1", count))
    if count:
        assert contents(create_sample("a/1", count)) != contents(create_sample("a/2", count))


@pytest.mark.parametrize("count", COUNTS)
def test_a_samples_pictures_have_the_number_of_tiles_asked_for(count):
    for number in range(6):
        pictures = create_sample(f"tiles/{number}", count).pictures
        canvases = [Canvas(*picture.image.size, picture.max_tiles) for picture in pictures]
        assert sum(canvas.num_tiles for canvas in canvases) == count


@pytest.mark.parametrize("task", EVALUATED)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_task_has_held_out_questions_in_both_languages(task, language):
    questions = [create_question(task, language, number) for number in range(3)]
    assert all(sample.turns[0].task == task and sample.turns[0].language == language for sample in questions)
    assert contents(questions[1]) == contents(create_question(task, language, 1))


def test_held_out_pictures_are_not_those_of_training():
    trained = {create_sample(f"0/{n}/0", 1).pictures[0].image.tobytes() for n in range(50)}
    held_out = {create_question("colour", "en", n).pictures[0].image.tobytes() for n in range(50)}
    assert trained.isdisjoint(held_out)


def scenes(number: int = 60):
    for i in range(number):
        chance = Chance(f"test/{i}")
        yield ShapeScene(choose_canvas((1, 3, 7)[i % 3], chance), chance), chance


def test_a_shapes_colour_is_what_the_picture_has_at_its_place():
    for scene, _ in scenes(20):
        pixels = np.asarray(scene.pictures[0].image)
        for thing in scene.things:
            seen = pixels[round(thing.y), round(thing.x)].astype(int)
            distances = [np.abs(seen - rgb).sum() for rgb, *_ in COLOURS]
            assert int(np.argmin(distances)) == thing.colour


def test_a_box_encloses_all_that_differs_from_the_ground():
    for scene, _ in scenes(30):
        if len(scene.things) == 1:
            pixels = np.asarray(scene.pictures[0].image).astype(int)
            rows, columns = np.nonzero(np.abs(pixels - pixels[0, 0]).sum(2) > 40)
            drawn = (columns.min(), rows.min(), columns.max(), rows.max())
            assert np.allclose(drawn, scene.things[0].box, atol=3)


def test_counts_and_boxes_agree_with_the_things_drawn():
    for scene, chance in scenes():
        for _ in range(10):
            turn = scene.ask("count", "en", chance)
            assert turn is not None
            kind = re.search(r"(?:many|Count the|of) (.*?)(?: are| in| can|\.|\?)", turn.question)[1]
            matching = [
                thing
                for thing in scene.things
                if kind.endswith((SHAPES[thing.shape][1], "objects"))
                if COLOURS[thing.colour][1] in kind.split() or len(kind.split()) == 1
            ]
            said = re.search(r"\d+|no\b", turn.answer)[0]
            assert len(matching) == (0 if said == "no" else int(said))
        turn = scene.ask("box", "zh", chance)
        if turn is not None:
            box = parse_boxes(turn.answer)[0]
            assert 0 <= box.x1 < box.x2 <= 1000
            assert 0 <= box.y1 < box.y2 <= 1000
            assert [t.name("zh") for t in scene.things].count(box.label) == 1


def test_things_do_not_overlap_and_lie_inside():
    for scene, _ in scenes():
        for number, thing in enumerate(scene.things):
            left, top, right, bottom = thing.box
            assert 0 <= left < right < scene.canvas.width
            assert 0 <= top < bottom < scene.canvas.height
            for other in scene.things[:number]:
                apart = right < other.box[0] or other.box[2] < left or bottom < other.box[1] or other.box[3] < top
                assert apart


@pytest.mark.parametrize("is_small", [False, True])
def test_text_lies_inside_and_small_text_inside_one_tile(is_small):
    for number in range(20):
        chance = Chance(f"text/{number}")
        canvas = choose_canvas(7 if is_small else 1, chance, is_large=is_small)
        scene = TextScene(canvas, chance, is_small=is_small)
        columns, rows = canvas.grid if is_small else (1, 1)
        for line in scene.lines:
            left, top, right, bottom = line.box
            assert 0 <= left < right <= canvas.width
            assert 0 <= top < bottom <= canvas.height
            assert int(left * columns / canvas.width) == int((right - 1) * columns / canvas.width)
            assert int(top * rows / canvas.height) == int((bottom - 1) * rows / canvas.height)


def test_small_text_is_too_small_for_the_thumbnail():
    for number in range(20):
        canvas = choose_canvas(7, Chance(f"small/{number}"), is_large=True)
        scene = TextScene(canvas, Chance(f"small/{number}"), is_small=True)
        assert all((line.box[3] - line.box[1]) * 448 / canvas.height < 12 for line in scene.lines)


def test_answers_of_text_are_printed_in_the_scene():
    for number in range(30):
        scene = create_scene("texts", 1, Chance(f"answers/{number}"))
        for language in LANGUAGES:
            turn = scene.ask("lines", language, Chance("x"))
            assert turn.answer == "\n".join(line.text for line in scene.lines)


def test_every_font_has_a_glyph_for_every_character_that_it_prints():
    def draw(font, character: str) -> bytes:
        return bytes(font.getmask(character))

    for name in (*LATIN_FONTS, *CHINESE_FONTS):
        font = load_font(name, 40)
        missing = draw(font, "\uffff")
        characters = CODE if name in LATIN_FONTS else COMMON
        assert not [c for c in characters if draw(font, c) == missing]
        assert len({draw(font, c) for c in characters}) == len(characters)


def test_there_are_500_characters_to_read():
    assert len(COMMON) == len(set(COMMON)) == 500


def test_both_languages_have_wordings_of_the_same_kinds():
    assert WORDINGS["en"].keys() == WORDINGS["zh"].keys()


def test_backgrounds_leave_enough_colours():
    assert all(Image.new("RGB", (1, 1), rgb) for rgb, *_ in BACKGROUNDS.values())
    assert all(len({rgb for rgb, *_ in COLOURS} - {rgb}) >= 10 for rgb, *_ in BACKGROUNDS.values())
