import io
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.scripted import HookedBuilder, MakePipeline, ScriptedClient, say
from tilewise import GenerationConfig, Pipeline, Session
from tilewise.answers import RANDOM_NOTICE
from tilewise.cli import main as cli
from tilewise.cli.chat import HELP, Chat
from tilewise.demo import picture_path
from tilewise.errors import EngineError, ImageError, InputError
from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.types import FinishReason, Request, StepOutput

PICTURE = shlex.quote(str(picture_path()))
CTRL_C = KeyboardInterrupt()
Entry = str | KeyboardInterrupt


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def answer(tokenizer: Tokenizer) -> Callable[[Request], list[StepOutput]]:
    """Answers with how many tokens and pictures were asked."""
    stop_id = tokenizer.special_id("<|im_end|>")

    def count(request: Request) -> list[StepOutput]:
        said = f"{len(request.token_ids)} tokens, {len(request.images)} pictures"
        return say(tokenizer.encode(said), FinishReason.STOP, stop_id)

    return count


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Type entries into a terminal, Ctrl-D last; gives the prompts that were shown."""

    def type_in(pipe: Pipeline, *entries: Entry, generation: GenerationConfig | None = None) -> list[str]:
        prompts: list[str] = []
        waiting = iter(entries)

        def read(prompt: str) -> str:
            prompts.append(prompt)
            entry = next(waiting, None)
            if entry is None:
                raise EOFError
            if isinstance(entry, KeyboardInterrupt):
                raise entry
            return entry

        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setattr("builtins.input", read)
        Chat(pipe, generation or GenerationConfig()).run()
        return prompts

    return type_in


@pytest.fixture
def interrupt_after() -> Callable[[Pipeline, int], None]:
    """Press Ctrl-C, once, when that many tokens of an answer have been read."""

    def arrange(pipe: Pipeline, num_tokens: int) -> None:
        seen = 0

        def press() -> None:
            nonlocal seen
            seen += 1
            if seen == num_tokens + 1:
                signal.raise_signal(signal.SIGINT)

        pipe.builder = HookedBuilder.wrap(pipe.builder, before_token=press)

    return arrange


def ask_by_pipe(monkeypatch: pytest.MonkeyPatch, pipe: Pipeline, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    Chat(pipe, GenerationConfig()).run()


def questions(client: ScriptedClient, tokenizer: Tokenizer) -> list[str]:
    """What each request's last turn asked."""
    texts = (tokenizer.decode(request.token_ids, skip_special_tokens=False) for request in client.submitted)
    return [text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0] for text in texts]


def test_a_turn_continues_from_those_before(
    make_pipeline: MakePipeline, answer: Any, talk: Any, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, client = make_pipeline(answer)
    talk(pipe, "hello", "and then?")
    first, second = client.submitted
    said = f"{len(first.token_ids)} tokens, 0 pictures"
    assert second.token_ids[: len(first.token_ids)] == first.token_ids
    assert said in tokenizer.decode(second.token_ids)
    assert capsys.readouterr().out == f"{said}\n{len(second.token_ids)} tokens, 0 pictures\n"


def test_pictures_wait_for_the_next_question_and_stay_in_the_conversation(
    make_pipeline: MakePipeline, answer: Any, talk: Any, tmp_path: Path
) -> None:
    copy = tmp_path / "a cat's.png"
    copy.write_bytes(picture_path().read_bytes())
    pipe, client = make_pipeline(answer)
    prompts = talk(pipe, f"/image {PICTURE}", f'/image "{copy}" {PICTURE}', "what?", "and now?")
    assert prompts == ["> ", "[1 picture] > ", "[3 pictures] > ", "> ", "> "]
    assert [len(request.images) for request in client.submitted] == [3, 3]


def test_a_picture_is_read_once_and_outlives_its_file(
    make_pipeline: MakePipeline, answer: Any, talk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    copy = tmp_path / "cat.png"
    copy.write_bytes(picture_path().read_bytes())

    def lose_the_file(request: Request) -> Any:
        copy.unlink(missing_ok=True)
        return answer(request)

    pipe, client = make_pipeline(lose_the_file)
    talk(pipe, "/image ~/cat.png", "what?", "and now?")
    first, second = client.submitted
    assert first.images == second.images


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("/image no-such.png", "There is no picture at 'no-such.png'"),
        (f"/image {PICTURE} no-such.png", "There is no picture at 'no-such.png'"),
        ("/image", "needs a path or URL"),
        ("/image bob's.png", "quotation mark is not closed"),
        ("/image http://127.0.0.1/a.png", "not on the public internet"),
        ("/imag a.png", "no command '/imag'; /help lists them"),
        ("/new topic", "/new takes nothing after it, got 'topic'"),
        ("/exit now", "/exit takes nothing"),
        ("/undo", "nothing to take back"),
        ("word " * 500, "--session-len"),
    ],
)
def test_what_is_refused_is_one_line_and_the_conversation_goes_on(
    make_pipeline: MakePipeline, answer: Any, talk: Any, capsys: pytest.CaptureFixture[str], entry: str, message: str
) -> None:
    pipe, client = make_pipeline(answer, session_len=256)
    talk(pipe, entry, "hello")
    out, err = capsys.readouterr()
    refusals = [line for line in err.splitlines() if line.startswith("tilewise: ")]
    assert len(refusals) == 1
    assert message in refusals[0]
    assert [len(request.images) for request in client.submitted] == [0]
    assert out.count("\n") == 1


def test_a_question_that_is_refused_leaves_its_pictures_waiting(
    make_pipeline: MakePipeline, answer: Any, talk: Any
) -> None:
    pipe, client = make_pipeline(answer, session_len=2048)
    prompts = talk(pipe, f"/image {PICTURE}", "word " * 5000, "what?")
    assert prompts == ["> ", "[1 picture] > ", "[1 picture] > ", "> "]
    assert [len(request.images) for request in client.submitted] == [1]


@pytest.mark.parametrize("command", ["/new", "/clear"])
def test_new_forgets_turns_and_pictures(make_pipeline: MakePipeline, answer: Any, talk: Any, command: str) -> None:
    pipe, client = make_pipeline(answer)
    talk(pipe, "hello", f"/image {PICTURE}", command, "hello")
    assert client.submitted[0].token_ids == client.submitted[1].token_ids


def test_undo_takes_back_waiting_pictures_and_then_the_last_turn(
    make_pipeline: MakePipeline, answer: Any, talk: Any
) -> None:
    pipe, client = make_pipeline(answer)
    talk(pipe, "one", "two", f"/image {PICTURE}", "/undo", "/undo", "two", "/undo", "/undo", "one")
    one, two, two_again, one_again = (request.token_ids for request in client.submitted)
    assert (two_again, one_again) == (two, one)


def test_a_backslash_continues_a_line_and_two_slashes_begin_a_question(
    make_pipeline: MakePipeline, answer: Any, talk: Any, tokenizer: Tokenizer
) -> None:
    pipe, client = make_pipeline(answer)
    prompts = talk(pipe, "first\\", "second\\", "third", "//etc, what is it?", "  ", "last\\")
    assert prompts == ["> ", ". ", ". ", "> ", "> ", "> ", ". ", "> "]
    assert questions(client, tokenizer) == ["first\nsecond\nthird", "/etc, what is it?", "last"]


def test_help_and_exit(make_pipeline: MakePipeline, answer: Any, talk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, client = make_pipeline(answer)
    assert talk(pipe, "/help", " /exit ", "never read") == ["> ", "> "]
    assert capsys.readouterr().out == HELP + "\n"
    assert not client.submitted


def test_ctrl_c_stops_the_answer_aborts_its_request_and_keeps_what_was_said(
    make_pipeline: MakePipeline,
    talk: Any,
    interrupt_after: Any,
    tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ids = tokenizer.encode("a small dog is sitting there")
    pipe, client = make_pipeline(lambda _: say(ids))
    interrupt_after(pipe, 3)
    prompts = talk(pipe, f"/image {PICTURE}", "what?", "and?")
    stopped, whole = capsys.readouterr().out.splitlines()
    assert client.aborted == [client.submitted[0].request_id]
    assert whole == "a small dog is sitting there"
    assert 0 < len(stopped) < len(whole)
    assert whole.startswith(stopped)
    assert f"assistant\n{stopped}<|im_end|>" in tokenizer.decode(
        client.submitted[1].token_ids, skip_special_tokens=False
    )
    assert prompts == ["> ", "[1 picture] > ", "> ", "> "]


def test_ctrl_c_before_any_text_leaves_the_conversation_as_it_was(
    make_pipeline: MakePipeline, answer: Any, talk: Any, interrupt_after: Any
) -> None:
    pipe, client = make_pipeline(answer)
    interrupt_after(pipe, 0)
    prompts = talk(pipe, f"/image {PICTURE}", "what?", "what?")
    assert prompts == ["> ", "[1 picture] > ", "[1 picture] > ", "> "]
    assert client.aborted == [client.submitted[0].request_id]
    assert client.submitted[0].token_ids == client.submitted[1].token_ids


def test_one_ctrl_c_at_the_prompt_hints_and_two_in_a_row_leave(
    make_pipeline: MakePipeline, answer: Any, talk: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, client = make_pipeline(answer)
    with pytest.raises(KeyboardInterrupt):
        talk(pipe, CTRL_C, "hello", "half a thought\\", CTRL_C, CTRL_C, "never read")
    assert len(client.submitted) == 1
    assert capsys.readouterr().err.count("/exit and Ctrl-D") == 2


def test_ctrl_c_without_a_terminal_leaves(
    make_pipeline: MakePipeline, answer: Any, interrupt_after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, client = make_pipeline(answer)
    interrupt_after(pipe, 2)
    with pytest.raises(KeyboardInterrupt):
        ask_by_pipe(monkeypatch, pipe, "one\ntwo\n")
    assert client.aborted == [client.submitted[0].request_id]
    assert len(client.submitted) == 1


def test_a_pipe_gets_answers_alone_on_stdout(
    make_pipeline: MakePipeline, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pipe, client = make_pipeline(lambda _: say(tokenizer.encode("yes"), FinishReason.LENGTH))
    ask_by_pipe(monkeypatch, pipe, f"/image {PICTURE}\nis it\\\n a dog?\n\nno-such\n/nonsense\nlast, without its end")
    out, err = capsys.readouterr()
    assert out == "yes\nyes\nyes\n"
    assert err.count("\n") == 1
    assert "/nonsense" in err
    assert len(client.submitted) == 3


def test_input_that_is_not_utf_8_is_read_all_the_same(
    make_pipeline: MakePipeline, answer: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, client = make_pipeline(answer)
    with io.TextIOWrapper(io.BytesIO(b"caf\xe9?\n"), encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        Chat(pipe, GenerationConfig()).run()
    assert questions(client, tokenizer) == ["caf\ufffd?"]


def test_an_answer_cut_off_by_its_length_is_said_to_be(
    make_pipeline: MakePipeline, talk: Any, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, _ = make_pipeline(lambda _: say(tokenizer.encode("a dog")))
    talk(pipe, "what?")
    out, err = capsys.readouterr()
    assert out == "a dog\n"
    assert "--max-new-tokens" in err


def test_an_answer_cannot_command_the_terminal(
    make_pipeline: MakePipeline, talk: Any, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tokenizer.encode("a\x1b]0;title\x07\x9b2J\r dog\n\t犬")
    pipe, _ = make_pipeline(lambda _: say(ids))
    talk(pipe, "what?")
    assert capsys.readouterr().out == "a]0;title2J dog\n\t犬\n"


def test_a_random_model_shows_the_notice_and_goes_on_from_its_own_words(
    make_pipeline: MakePipeline, talk: Any, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, client = make_pipeline(lambda _: say(tokenizer.encode("a dog")), is_random=True)
    talk(pipe, "what?", "and?")
    assert capsys.readouterr().out == f"{RANDOM_NOTICE}\n" * 2
    assert "a dog" in tokenizer.decode(client.submitted[1].token_ids)


def test_an_engine_that_fails_once_costs_one_turn(
    make_pipeline: MakePipeline, answer: Any, talk: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_first(request: Request) -> Sequence[StepOutput]:
        failure = StepOutput("", finish_reason=FinishReason.ERROR, error="out of luck")
        return [*answer(request)[:2], failure] if len(client.submitted) == 1 else answer(request)

    pipe, client = make_pipeline(fail_first)
    talk(pipe, "one", "one")
    assert "tilewise: out of luck\n" in capsys.readouterr().err
    assert client.submitted[0].token_ids == client.submitted[1].token_ids


def test_an_engine_that_is_gone_ends_the_conversation(make_pipeline: MakePipeline, talk: Any) -> None:
    pipe, client = make_pipeline(lambda _: [])
    client.is_dead = True
    with pytest.raises(EngineError, match="stopped while"):
        talk(pipe, "one", "two")


def steps(ids: Iterable[int]) -> Iterator[StepOutput]:
    return (StepOutput("", (token_id,)) for token_id in ids)


def test_leaving_a_streamed_turn_keeps_what_was_said_and_aborts(
    make_pipeline: MakePipeline, tokenizer: Tokenizer
) -> None:
    pipe, client = make_pipeline(lambda _: list(steps(tokenizer.encode("a small dog"))))
    session = Session()
    with closing(pipe.stream_chat("what?", session)) as pieces:
        said = next(pieces).text + next(pieces).text
    assert session.history == [("what?", said)]
    assert session.response is not None
    assert session.response.finish_reason == "abort"
    assert client.aborted == [client.submitted[0].request_id]


def test_a_streamed_turn_joins_to_the_called_one(make_pipeline: MakePipeline, answer: Any) -> None:
    pipe, _ = make_pipeline(answer)
    streamed = Session()
    pieces = list(pipe.stream_chat("what?", streamed))
    called = pipe.chat("what?")
    assert "".join(piece.text for piece in pieces) == streamed.history[0][1] == called.history[0][1]
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert streamed.messages == called.messages


def test_a_streamed_turn_that_fails_leaves_the_session_as_it_was(make_pipeline: MakePipeline, answer: Any) -> None:
    pipe, _ = make_pipeline(answer)
    session = pipe.chat("hello")
    before = (session.response, list(session.history), session.messages)
    with pytest.raises(ImageError):
        list(pipe.stream_chat(("look", "no-such-file.png"), session))
    with pytest.raises(InputError, match="n > 1"):
        pipe.stream_chat("again", session, GenerationConfig(n=2))
    assert (session.response, session.history, session.messages) == before


class Chosen(list[Any]):
    """What the model was created with; it is a scripted one."""

    def __init__(self, make_pipeline: MakePipeline, answer: Any) -> None:
        super().__init__()
        self._make_pipeline, self._answer = make_pipeline, answer

    def create_pipeline(self, *arguments: Any) -> Pipeline:
        self.append(arguments)
        return self._make_pipeline(self._answer)[0]


@pytest.fixture
def chosen(make_pipeline: MakePipeline, answer: Any, monkeypatch: pytest.MonkeyPatch) -> Chosen:
    """Give `tilewise chat` one question on stdin."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    return Chosen(make_pipeline, answer)


def test_the_command_takes_model_profile_and_engine_flags(chosen: Chosen, capsys: pytest.CaptureFixture[str]) -> None:
    line = "chat some/model --session-len 512 --chat-template internvl-official --do-sample --temperature 0.5"
    assert cli.main(line.split(), chosen.create_pipeline) == 0
    (arguments,) = chosen
    model, _, config, template, _ = arguments
    assert (model, config.session_len, template.model_name) == ("some/model", 512, "internvl-official")
    assert capsys.readouterr().out.endswith("tokens, 0 pictures\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("chat --temperature 0.5", "--temperature: has no effect without sampling"),
        ("chat --max-new-tokens 0", "max_new_tokens must be"),
        ("chat --tp 2", "tp=1"),
        ("chat --n 2", "unknown argument '--n'"),
        ("chat --logprobs 2", "unknown argument '--logprobs'"),
        ("chat --max-new-token 2", "Did you mean --max-new-tokens?"),
    ],
)
def test_a_flag_that_would_not_be_honoured_is_refused_before_a_model_is_loaded(
    line: str, message: str, chosen: Chosen, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = cli.main(line.split(), chosen.create_pipeline)
    except SystemExit as left:
        status = left.code
    assert status == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not chosen


def test_pictures_come_from_the_hosts_that_the_pipeline_allows(
    make_pipeline: MakePipeline, answer: Any, talk: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, _ = make_pipeline(answer, pictures={"allowed_media_hosts": ["127.0.0.1"]})
    talk(pipe, "/image http://127.0.0.1:9/a.png")
    err = capsys.readouterr().err
    assert "tilewise: " in err
    assert "public internet" not in err
