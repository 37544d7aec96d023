"""What the embedded model says about scenes is right, and the same whichever way it is asked."""

from collections.abc import Iterator

import pytest
from training.draw_picture import NAME, SIZE
from training.scenes import create_question
from training.scenes.sample import Canvas, Chance, Sample
from training.scenes.shapes import ShapeScene

from tilewise import GenerationConfig, Pipeline, Response, pipeline
from tilewise.demo import picture_path

GREEDY = GenerationConfig(max_new_tokens=64)
TASKS = ("colour", "shape", "position", "count", "chinese", "latin", "pair", "talk")


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with pipeline(device="cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """32 held-out questions of one or two tiles, in both languages."""
    found = [create_question(task, language, n) for n in range(8) for task in TASKS for language in ("en", "zh")]
    return [sample for sample in found if all(max(picture.image.size) < 700 for picture in sample.pictures)][:32]


def ask(pipe: Pipeline, samples: list[Sample]) -> list[Response]:
    """The answers, all questions at once."""
    prompts = [(sample.turns[0].question, [picture.image for picture in sample.pictures]) for sample in samples]
    responses = pipe(prompts, GREEDY)
    assert isinstance(responses, list)
    return [response for response in responses if isinstance(response, Response)]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_bundled_picture_is_described_rightly(pipe: Pipeline, language: str) -> None:
    chance = Chance(language)
    scene = ShapeScene(Canvas(*SIZE), Chance(NAME))
    question = {"en": "Describe the picture.", "zh": "请描述图中内容"}[language]
    turns = (scene.ask("describe", language, chance) for _ in range(200))
    answer = next(turn.answer for turn in turns if turn is not None and turn.question == question)
    response = pipe((question, str(picture_path())), GenerationConfig(max_new_tokens=128))
    assert isinstance(response, Response)
    assert response.text == answer


@pytest.fixture(scope="module")
def answers(pipe: Pipeline, samples: list[Sample]) -> list[Response]:
    return ask(pipe, samples)


def test_most_answers_to_held_out_questions_are_right(answers: list[Response], samples: list[Sample]) -> None:
    right = sum(answer.text == sample.turns[0].answer for answer, sample in zip(answers, samples, strict=True))
    assert right >= 0.9 * len(samples)


def test_one_by_one_the_chat_and_a_warm_cache_give_the_ids_of_a_batch_of_32(
    pipe: Pipeline, answers: list[Response], samples: list[Sample]
) -> None:
    batch = [answer.token_ids for answer in answers]
    assert len(batch) == 32
    warm = ask(pipe, samples)
    assert [answer.token_ids for answer in warm] == batch
    assert any(answer.usage is not None and answer.usage.cached_tokens for answer in warm)
    for sample, ids in zip(samples[:8], batch[:8], strict=True):
        pictures = [picture.image for picture in sample.pictures]
        response = pipe.chat((sample.turns[0].question, pictures), gen_config=GREEDY).response
        assert response is not None
        assert response.token_ids == ids
    with pipeline(device="cpu", enable_prefix_caching=False) as cold:
        assert [ask(cold, [sample])[0].token_ids for sample in samples[:12]] == batch[:12]
