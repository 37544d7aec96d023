import itertools
import logging
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tilewise
from tests.processes import run_command
from tests.scripted import HookedBuilder, MakePipeline, say
from tilewise import ChatTemplateConfig, EngineConfig, GenerationConfig, Response, Session
from tilewise.answers import RANDOM_NOTICE
from tilewise.demo import model_folder
from tilewise.errors import ConfigError, EngineError, ImageError, ImageFetchError, InputError
from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.types import Box, FinishReason, Request, StepOutput, Usage
from tilewise.vl import encode_image_base64

PICTURE = Image.new("RGB", (1344, 896))
TEXT = "这张图片展示了一只小狗。 A small dog, sitting."


@pytest.fixture
def ids(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(TEXT)


@pytest.fixture
def stop_id(tokenizer: Tokenizer) -> int:
    return tokenizer.special_id("<|im_end|>")


def test_a_stop_token_counts_and_is_not_among_the_ids(
    make_pipeline: MakePipeline, ids: list[int], stop_id: int
) -> None:
    pipe, _ = make_pipeline(lambda _: say(ids, FinishReason.STOP, stop_id))
    response = pipe("hi")
    assert isinstance(response, Response)
    assert (response.text, response.finish_reason) == (TEXT, "stop")
    assert (response.token_ids, response.generate_token_len) == (ids, len(ids) + 1)


def test_a_length_finish_counts_no_further_token(make_pipeline: MakePipeline, ids: list[int]) -> None:
    pipe, _ = make_pipeline(lambda _: say(ids))
    response = pipe("hi")
    assert isinstance(response, Response)
    assert (response.generate_token_len, response.finish_reason) == (len(ids), "length")


def test_the_repr_is_lmdeploys(make_pipeline: MakePipeline, ids: list[int], stop_id: int) -> None:
    pipe, client = make_pipeline(lambda _: say(ids, FinishReason.STOP, stop_id))
    response = pipe("hi")
    assert repr(response) == (
        f"Response(text={TEXT!r}, generate_token_len={len(ids) + 1}, "
        f"input_token_len={len(client.submitted[0].token_ids)}, session_id=0, finish_reason='stop', "
        f"token_ids={ids!r}, logprobs=None)"
    )


def test_logprobs_are_one_a_token(make_pipeline: MakePipeline, ids: list[int], stop_id: int) -> None:
    pipe, _ = make_pipeline(lambda _: say(ids, FinishReason.STOP, stop_id))
    response = pipe("hi", GenerationConfig(logprobs=0))
    assert isinstance(response, Response)
    assert [entry.token_id for entry in response.logprobs or []] == ids


def test_a_stop_word_across_tokens_ends_the_answer_before_itself_and_aborts(
    make_pipeline: MakePipeline, ids: list[int]
) -> None:
    pipe, client = make_pipeline(lambda _: say(ids * 3))
    response = pipe("hi", GenerationConfig(stop_words=["小狗。 A"]))
    assert isinstance(response, Response)
    assert (response.text, response.finish_reason) == ("这张图片展示了一只", "stop")
    assert response.generate_token_len == len(response.token_ids) < len(ids)
    assert client.aborted == [client.submitted[0].request_id]


def test_the_template_s_own_words_stop_too(make_pipeline: MakePipeline, ids: list[int]) -> None:
    pipe, client = make_pipeline(lambda _: say(ids), template=ChatTemplateConfig(stop_words=("小狗",)))
    response = pipe("hi")
    assert isinstance(response, Response)
    assert response.text == "这张图片展示了一只"
    assert len(client.aborted) == 1


def test_streamed_texts_join_to_the_called_text(make_pipeline: MakePipeline, ids: list[int], stop_id: int) -> None:
    pipe, _ = make_pipeline(lambda _: say(ids, FinishReason.STOP, stop_id))
    pieces = list(pipe.stream_infer("hi", GenerationConfig(stop_words=["never met"])))
    called = pipe("hi")
    assert isinstance(called, Response)
    assert "".join(piece.text for piece in pieces) == called.text == TEXT
    assert list(itertools.chain.from_iterable(piece.token_ids for piece in pieces)) == called.token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert pieces[-1].generate_token_len == called.generate_token_len


def test_a_streamed_batch_numbers_its_prompts(make_pipeline: MakePipeline, tokenizer: Tokenizer) -> None:
    def answer_the_question(request: Request) -> list[StepOutput]:
        return say(tokenizer.encode("yes " * len(request.token_ids)))

    pipe, client = make_pipeline(answer_the_question)
    texts = {0: "", 1: ""}
    for piece in pipe.stream_infer(["a", "a longer question"]):
        texts[piece.session_id] += piece.text
    assert texts == {n: "yes " * len(client.submitted[n].token_ids) for n in texts}


def test_only_what_is_streamed_is_said_to_be_read_as_it_comes(make_pipeline: MakePipeline, ids: list[int]) -> None:
    pipe, client = make_pipeline(lambda _: say(ids))
    for ask, is_streamed in (
        (lambda: pipe("hi"), False),
        (lambda: pipe(["hi", "ho"], GenerationConfig(n=2)), False),
        (lambda: pipe.batch_infer(["hi"]), False),
        (lambda: pipe.chat("hi"), False),
        (lambda: [*pipe.stream_infer(["hi", "ho"])], True),
        (lambda: [*pipe.stream_chat("hi")], True),
    ):
        client.submitted.clear()
        ask()
        assert {request.is_streamed for request in client.submitted} == {is_streamed}


def test_leaving_a_stream_aborts_what_runs(make_pipeline: MakePipeline, ids: list[int]) -> None:
    pipe, client = make_pipeline(lambda _: say(ids)[:3])
    stream = pipe.stream_infer(["a", "b"])
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    assert sorted(client.aborted) == sorted(request.request_id for request in client.submitted)


def test_a_list_is_submitted_at_once_and_answered_in_its_order(
    make_pipeline: MakePipeline, tokenizer: Tokenizer
) -> None:
    waiting: list[Request] = []

    def end_in_reverse(request: Request) -> list[StepOutput]:
        waiting.append(request)
        if len(waiting) < 4:
            return []
        return [
            replace(output, request_id=each.request_id)
            for each in reversed(waiting)
            for output in say(tokenizer.encode(f"of {len(each.token_ids)}"))
        ]

    pipe, _ = make_pipeline(end_in_reverse)
    prompts: list[Any] = ["a", ("b", []), [{"role": "user", "content": "c c c"}], "d d d d d d"]
    responses = pipe(prompts)
    assert isinstance(responses, list)
    assert [response.session_id for response in responses] == [0, 1, 2, 3]
    assert [response.text for response in responses] == [f"of {response.input_token_len}" for response in responses]


def test_no_more_than_twice_a_batch_is_prepared_ahead(make_pipeline: MakePipeline, ids: list[int]) -> None:
    most_open = 0

    def watch(request: Request) -> list[StepOutput]:
        nonlocal most_open
        most_open = max(most_open, len(client.submitted) - client.submitted.index(request))
        return say(ids)

    pipe, client = make_pipeline(watch, max_batch_size=2)
    assert len(pipe.batch_infer(["hi"] * 20)) == 20
    assert 1 <= most_open <= 4


def test_an_empty_list_has_no_answers(make_pipeline: MakePipeline) -> None:
    pipe, client = make_pipeline(lambda _: [])
    assert pipe([]) == []
    assert not client.submitted


def test_n_gives_a_list_in_the_prompt_s_place_with_seeds_counted_up(
    make_pipeline: MakePipeline, tokenizer: Tokenizer
) -> None:
    pipe, client = make_pipeline(lambda request: say(tokenizer.encode(str(request.generation.random_seed))))
    chosen = GenerationConfig(n=3, do_sample=True, random_seed=2**64 - 2)
    plain, several = pipe(["a", "b"], [GenerationConfig(), chosen])
    assert isinstance(plain, Response)
    assert isinstance(several, list)
    assert [response.text for response in several] == [str(2**64 - 2), str(2**64 - 1), "0"]
    assert {request.generation.n for request in client.submitted} == {1}
    assert len({request.request_id for request in client.submitted}) == 4


def test_n_cannot_be_streamed_or_chatted(make_pipeline: MakePipeline) -> None:
    pipe, _ = make_pipeline(lambda _: [])
    with pytest.raises(InputError, match="n > 1 cannot be streamed"):
        pipe.stream_infer("a", GenerationConfig(n=2))
    with pytest.raises(InputError, match="n > 1 has no place in a chat"):
        pipe.chat("a", gen_config=GenerationConfig(n=2))


def test_one_bad_prompt_of_a_list_is_named_and_the_others_are_aborted(
    make_pipeline: MakePipeline, tmp_path: Path
) -> None:
    pipe, client = make_pipeline(lambda _: [])
    with pytest.raises(ImageError, match="Prompt 1 of 3, counted from 0: There is no picture"):
        pipe(["a", ("b", str(tmp_path / "none.png")), "c"])
    assert client.aborted == [request.request_id for request in client.submitted]
    assert len(client.aborted) == 1


def test_an_engine_error_ends_the_call_and_aborts_the_others(make_pipeline: MakePipeline) -> None:
    def fail_the_second(_: Request) -> list[StepOutput]:
        is_second = len(client.submitted) == 2
        return [StepOutput("", finish_reason=FinishReason.ERROR, error="out of luck")] if is_second else []

    gate = threading.Event()
    pipe, client = make_pipeline(lambda request: (gate.wait(10), fail_the_second(request))[1])
    threading.Timer(0.05, gate.set).start()
    with pytest.raises(EngineError, match="out of luck"):
        pipe(["a", "b"])
    assert client.submitted[0].request_id in client.aborted


def test_an_engine_that_dies_is_noticed(make_pipeline: MakePipeline) -> None:
    pipe, client = make_pipeline(lambda _: [])
    client.is_dead = True
    with pytest.raises(EngineError, match="stopped while requests were running"):
        pipe("hi")


def test_an_interrupt_aborts_what_runs(make_pipeline: MakePipeline, ids: list[int]) -> None:
    pipe, client = make_pipeline(lambda _: say(ids))

    def interrupt() -> None:
        raise KeyboardInterrupt

    pipe.builder = HookedBuilder.wrap(pipe.builder, before_token=interrupt)
    with pytest.raises(KeyboardInterrupt):
        pipe(["a", "b"])
    assert client.aborted == [request.request_id for request in client.submitted]


def test_a_random_model_s_text_is_a_notice_and_its_ids_are_true(make_pipeline: MakePipeline, ids: list[int]) -> None:
    pipe, _ = make_pipeline(lambda _: say(ids), is_random=True)
    response = pipe("hi")
    assert isinstance(response, Response)
    assert (response.text, response.token_ids) == (RANDOM_NOTICE, ids)
    assert "".join(piece.text for piece in pipe.stream_infer("hi")) == RANDOM_NOTICE


def test_boxes_are_found_whether_or_not_their_tokens_are_shown(
    make_pipeline: MakePipeline, tokenizer: Tokenizer
) -> None:
    special = tokenizer.special_id
    ids = [
        special("<ref>"),
        *tokenizer.encode("dog"),
        special("</ref>"),
        special("<box>"),
        *tokenizer.encode("[[1, 2, 30, 40]]"),
        special("</box>"),
    ]
    pipe, _ = make_pipeline(lambda _: say(ids))
    hidden, kept = pipe("hi"), pipe("hi", GenerationConfig(skip_special_tokens=False))
    assert isinstance(hidden, Response)
    assert isinstance(kept, Response)
    assert (hidden.text, kept.text) == ("dog[[1, 2, 30, 40]]", "<ref>dog</ref><box>[[1, 2, 30, 40]]</box>")
    assert hidden.boxes == kept.boxes == (Box("dog", 1, 2, 30, 40),)
    *earlier, last = pipe.stream_infer("hi")
    assert last.boxes == hidden.boxes
    assert not any(piece.boxes for piece in earlier)


def test_usage_counts_picture_tokens_and_cached_ones(make_pipeline: MakePipeline, ids: list[int]) -> None:
    pipe, client = make_pipeline(lambda _: [StepOutput("", tuple(ids), (), FinishReason.LENGTH, cached_tokens=64)])
    response = pipe(("hi", Image.new("RGB", (600, 400))))
    assert isinstance(response, Response)
    tokens_per_tile = pipe.engine.resolved.model.tokens_per_tile
    expected = Usage(len(client.submitted[0].token_ids), len(ids), cached_tokens=64, image_tokens=7 * tokens_per_tile)
    assert response.usage == expected


def test_a_chat_continues_from_the_answers_and_says_the_system_block_once(
    make_pipeline: MakePipeline, tokenizer: Tokenizer, ids: list[int], stop_id: int
) -> None:
    pipe, client = make_pipeline(lambda _: say(ids, FinishReason.STOP, stop_id))
    session = pipe.chat(("look", Image.new("RGB", (448, 448))))
    first = session.response
    assert pipe.chat("and then?", session=session) is session
    assert first is not None
    assert session.history[1] == ("and then?", TEXT)
    one, two = (request.token_ids for request in client.submitted)
    assert two[: len(one) + len(ids)] == (*one, *ids)
    assert tokenizer.decode(two, skip_special_tokens=False).count("system\n") == 1


def test_a_turn_that_fails_leaves_the_session_as_it_was(make_pipeline: MakePipeline, ids: list[int]) -> None:
    pipe, _ = make_pipeline(lambda _: say(ids))
    session = pipe.chat("hi")
    before = (session.response, list(session.history), session.messages)
    with pytest.raises(ImageError):
        pipe.chat(("look", "no-such-file.png"), session=session)
    assert (session.response, session.history, session.messages) == before


def test_a_session_closes_to_nothing() -> None:
    with Session() as session:
        session.history.append(("a", "b"))
    assert (session.response, session.history, session.messages) == (None, [], ())


def test_a_closed_pipeline_closes_once_and_answers_nothing(make_pipeline: MakePipeline, ids: list[int]) -> None:
    pipe, client = make_pipeline(lambda _: say(ids))
    with pipe:
        pass
    pipe.close()
    assert client.num_closed == 1
    with pytest.raises(EngineError, match="is closed"):
        pipe("hi")


@pytest.mark.parametrize("given", [[GenerationConfig()], [GenerationConfig(), None], [1, 2], 5, "ab"])
def test_a_list_of_generation_configs_must_fit_the_prompts(make_pipeline: MakePipeline, given: Any) -> None:
    pipe, _ = make_pipeline(lambda _: [])
    with pytest.raises(InputError, match="for each of the 2 prompts"):
        pipe(["a", "b"], given)


def test_a_progress_bar_is_shown_where_asked_for(
    make_pipeline: MakePipeline, ids: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, _ = make_pipeline(lambda _: say(ids))
    pipe(["a"] * 20)
    assert capsys.readouterr().err == ""
    pipe(["a"] * 3, use_tqdm=True)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sesion_len": 5}, "Did you mean 'session_len'"),
        ({"backend_config": EngineConfig(), "session_len": 5}, "put them into it"),
        ({"log_level": "LOUD"}, "log_level='LOUD' is unknown"),
        ({"model_name": "a", "chat_template_config": ChatTemplateConfig("b")}, "name two prompt profiles"),
        ({"model_name": "no-such-profile"}, "no-such-profile"),
        ({"model_path": 3}, "model_path=3 must be a folder"),
        ({"model_name": 3}, "model_name=3 must be"),
        ({"backend_config": {"tp": 1}}, "backend_config={'tp': 1} must be an EngineConfig"),
        ({"chat_template_config": "internvl-official"}, "chat_template_config='internvl-official' must be a Chat"),
        ({"log_level": 10}, "log_level=10 is unknown; choose DEBUG"),
        ({"allowed_media_hosts": "a.lan"}, "give a list of bare hosts"),
    ],
)
def test_a_setting_that_would_not_be_honoured_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tilewise.pipeline(**arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_dynamic_patch": 0}, "max_dynamic_patch must be a whole number"),
        ({"max_dynamic_patch": "4"}, "max_dynamic_patch must be a whole number"),
        ({"max_dynamic_patch": 2, "min_dynamic_patch": 3}, r"min_dynamic_patch must be a whole number in \[1, 2\]"),
    ],
)
def test_a_number_of_tiles_that_no_picture_can_have_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tilewise.pipeline(**given)


@pytest.mark.parametrize("field", ["model_name", "meta_instruction"])
def test_a_chat_template_s_texts_are_texts(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}=5 must be a string") as caught:
        ChatTemplateConfig(**{field: 5})  # pyright: ignore[reportArgumentType]
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("arguments", "param"), [(("a", "x"), "session"), (("a", Session(), [GenerationConfig()]), "gen_config")]
)
def test_a_chat_s_arguments_of_the_wrong_type_are_named(
    make_pipeline: MakePipeline, arguments: tuple[Any, ...], param: str
) -> None:
    pipe, _ = make_pipeline(lambda _: [])
    with pytest.raises(InputError, match=f"^{param}=") as caught:
        pipe.chat(*arguments)
    assert caught.value.param == param


def test_tiles_are_bounded_for_pictures_that_do_not_say_their_own(make_pipeline: MakePipeline, ids: list[int]) -> None:
    pipe, client = make_pipeline(lambda _: say(ids), pictures={"max_dynamic_patch": 2})
    own = {"url": f"data:image/png;base64,{encode_image_base64(PICTURE)}", "max_dynamic_patch": 6}
    pipe([("hi", PICTURE), [{"role": "user", "content": [{"type": "image_url", "image_url": own}]}]])
    assert [request.images[0].num_tiles for request in client.submitted] == [2 + 1, 6 + 1]
    pipe, client = make_pipeline(lambda _: say(ids), pictures={"min_dynamic_patch": 8})
    pipe(("hi", PICTURE))
    assert client.submitted[0].images[0].num_tiles > 8


def test_a_host_may_be_allowed_that_is_not_on_the_public_internet(make_pipeline: MakePipeline) -> None:
    pipe, _ = make_pipeline(lambda _: [])
    with pytest.raises(ImageFetchError, match="not on the public internet"):
        pipe(("hi", "http://127.0.0.1:9/a.png"))
    pipe, _ = make_pipeline(lambda _: [], pictures={"allowed_media_hosts": ["127.0.0.1"]})
    with pytest.raises(ImageFetchError) as caught:
        pipe(("hi", "http://127.0.0.1:9/a.png"))
    assert "public internet" not in str(caught.value)


def test_what_is_wrong_beside_the_weights_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    for path in model_folder().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 100 if path.name == "tokenizer.model" else None])
    script = (
        "import sys\n"
        "from tilewise import TilewiseError, pipeline\n"
        "for given in ({'model_path': 'nowhere'}, {'model_path': sys.argv[1]}, {'model_name': 'no-such-profile'}):\n"
        "    try:\n"
        "        pipeline(**given)\n"
        "    except TilewiseError as error:\n"
        "        print(type(error).__name__, 'torch' in sys.modules)\n"
    )
    source = Path(tilewise.__file__).parents[1]
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = run_command(command, env={"PYTHONPATH": str(source)}, check=True)
    assert done.stdout.splitlines() == ["CheckpointError False", "CheckpointError False", "ConfigError False"]


def test_the_notice_s_repr_has_the_quotes_of_any_other_answer_s() -> None:
    assert repr(RANDOM_NOTICE) == f"'{RANDOM_NOTICE}'"


def test_the_log_level_reaches_the_package_s_logger(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tilewise")
    caplog.set_level(logging.NOTSET, "tilewise")  # which also restores it
    with pytest.raises(ConfigError):
        tilewise.pipeline(log_level="debug", no_such_option=1)
    assert logger.level == logging.DEBUG
