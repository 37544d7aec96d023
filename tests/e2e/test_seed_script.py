"""The seed's script on the embedded model: the same calls, with the model left out and the bundled picture."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilewise import GenerationConfig, Pipeline, Response, pipeline
from tilewise.demo import model_folder, picture_path
from tilewise.inputs.text.tokenizer import load_tokenizer
from tilewise.vl import encode_image_base64, load_image

SHORT = GenerationConfig(max_new_tokens=4)


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with pipeline() as pipe:
        yield pipe


def test_the_script_prints_a_response(pipe: Pipeline) -> None:
    image = load_image(str(picture_path()))
    response = pipe(("请描述图中内容", image), SHORT)
    assert isinstance(response, Response)
    encode = load_tokenizer(model_folder()).encode
    unasked = pipe(("", image), SHORT)
    assert isinstance(unasked, Response)
    assert response.input_token_len - unasked.input_token_len == len(encode("\n请描述图中内容")) - len(encode("\n"))
    assert response.usage is not None
    assert response.usage.image_tokens == 7 * pipe.engine.resolved.model.tokens_per_tile
    assert repr(response).startswith(f"Response(text={response.text!r}, generate_token_len=")
    assert response.text
    assert len(response.token_ids) in (response.generate_token_len, response.generate_token_len - 1)


def test_every_call_form_of_one_question_is_the_same_request(pipe: Pipeline, tmp_path: Path) -> None:
    image = load_image(str(picture_path()))
    url = f"data:image/png;base64,{encode_image_base64(image)}"
    part = {"type": "image_url", "image_url": {"url": url}}
    message = {"role": "user", "content": [part, {"type": "text", "text": "what?"}]}
    forms = [("what?", image), ("what?", str(picture_path())), ("what?", [image]), ("what?", url), [message]]
    responses = pipe(forms, SHORT)
    assert isinstance(responses, list)
    answers = [response for response in responses if isinstance(response, Response)]
    assert len(answers) == len(forms)
    assert len({(answer.input_token_len, tuple(answer.token_ids)) for answer in answers}) == 1


def test_streamed_ids_are_the_called_ids(pipe: Pipeline) -> None:
    called = pipe("hello", GenerationConfig(max_new_tokens=12))
    assert isinstance(called, Response)
    pieces = list(pipe.stream_infer("hello", GenerationConfig(max_new_tokens=12)))
    assert [token_id for piece in pieces for token_id in piece.token_ids] == called.token_ids
    assert pieces[-1].finish_reason == called.finish_reason


def test_a_seeded_sample_repeats_alone_and_in_company(pipe: Pipeline) -> None:
    sampled = GenerationConfig(max_new_tokens=8, do_sample=True, temperature=1.5, random_seed=7)
    alone = pipe("hello", sampled)
    beside = pipe(["something else entirely", "hello"], sampled)
    assert isinstance(alone, Response)
    assert isinstance(beside, list)
    assert isinstance(beside[1], Response)
    assert alone.token_ids == beside[1].token_ids


def test_a_conversation_goes_on(pipe: Pipeline) -> None:
    session = pipe.chat(("what is it?", str(picture_path())), gen_config=SHORT)
    first = session.response
    session = pipe.chat("and its colour?", session=session, gen_config=SHORT)
    assert first is not None
    assert session.response is not None
    assert session.response.input_token_len > first.input_token_len
    assert [text for _, text in session.history] == [first.text, session.response.text]


def test_the_seed_s_question_takes_1831_tokens_in_the_official_layout(shipped_data: Path) -> None:
    from tilewise.checkpoint.hf_config import load_model_config
    from tilewise.inputs.conversation import parse_prompt
    from tilewise.inputs.media.policy import ImagePolicy
    from tilewise.inputs.request_builder import RequestBuilder
    from tilewise.inputs.text.profile_choice import choose_profile
    from tilewise.types import TilingParameters

    seed = json.loads((shipped_data / "seed.json").read_text())
    folder = shipped_data / "internvl-chat-v1-5"
    model = load_model_config(folder)
    builder = RequestBuilder(
        model, 32768, load_tokenizer(folder), choose_profile(model), ImagePolicy(), TilingParameters()
    )
    image = load_image(str(shipped_data / seed["image"]))
    request = builder.build(parse_prompt((seed["prompt"], image)), GenerationConfig(), "seed")
    assert len(request.token_ids) == seed["input_token_len"] == 1831
    span = request.spans[0]
    assert list(request.token_ids[: span.start]) == seed["ids_before_image"]
    assert list(request.token_ids[span.end :]) == seed["ids_after_image"]
