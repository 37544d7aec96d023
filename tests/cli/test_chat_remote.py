"""`tilewise chat --server`: the same conversation in the terminal, over HTTP."""

import io
import shlex
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes import PATIENCE_S
from tests.serving.openai.openai_double import Double, Refusal
from tilewise.cli import main as cli
from tilewise.client import to_data_url
from tilewise.demo import picture_path
from tilewise.inputs.media.sources import load_image

PICTURE = shlex.quote(str(picture_path()))


@pytest.fixture
def double() -> Iterator[Double]:
    with Double() as running:
        yield running


def chat(monkeypatch: pytest.MonkeyPatch, double: Double, typed: str, *flags: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return cli.main(["chat", "--server", double.url, *flags])


def test_turns_and_pictures_travel_and_answers_come_back(
    double: Double, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, double, f"/image {PICTURE}\nwhat?\nand?\n/undo\nor?\n", "--api-key", "secret") == 0
    assert capsys.readouterr().out == "The answer is 42.\n" * 3
    first, second, third = (body["messages"] for body in double.bodies)
    (question,) = first
    picture, text = question["content"]
    assert load_image(picture["image_url"]["url"]).tobytes() == load_image(to_data_url(picture_path())).tobytes()
    assert text == {"type": "text", "text": "what?"}
    assert second[:2] == [question, {"role": "assistant", "content": "The answer is 42."}] == third[:2]
    assert third[2]["content"] == [{"type": "text", "text": "or?"}]
    assert {key for _, _, key in double.asked} == {"Bearer secret"}


def test_the_key_may_come_from_the_environment(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWISE_API_KEY", "from outside")
    assert chat(monkeypatch, double, "hello\n") == 0
    assert double.asked[-1][2] == "Bearer from outside"


def test_settings_travel_by_the_apis_names(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--do-sample --temperature 0.5 --top-k 3 --max-new-tokens 7 --random-seed 1 --stop-words END"
    chat(monkeypatch, double, "hello\n", *flags.split())
    chat(monkeypatch, double, "hello\n")
    sampled, greedy = double.bodies
    wanted = {"temperature": 0.5, "top_k": 3, "max_tokens": 7, "seed": 1, "stop": ["END"]}
    assert {name: sampled[name] for name in wanted} == wanted
    assert greedy["temperature"] == 0
    assert "top_k" not in greedy


def test_a_refusal_costs_one_turn(
    double: Double, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    double.script = lambda body: Refusal(429, "The queue is full.", "x") if len(double.bodies) == 1 else ("yes",)
    assert chat(monkeypatch, double, "one\ntwo\n") == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("yes\n", "tilewise: The queue is full.\n")
    assert len(double.bodies[1]["messages"]) == 1


def test_a_server_that_is_gone_ends_the_conversation(
    double: Double, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Double() as gone:
        pass
    assert chat(monkeypatch, gone, "hello\n") == 1
    assert "tilewise serve api_server" in capsys.readouterr().err


def test_ctrl_c_closes_the_connection(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    def go_on(body: dict[str, Any]) -> tuple[str, ...]:
        signal.raise_signal(signal.SIGINT)
        return ("word ",) * 10_000

    double.script, double.delay_s = go_on, 0.01
    assert chat(monkeypatch, double, "hello\n") == 130
    assert double.left.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("some/model", "MODEL is the server's own"),
        ("--tp 1", "--tp=1 is the server's own"),
        ("--no-enable-prefix-caching", "--no-enable-prefix-caching is the server's own"),
        ("--chat-template internvl-official", "--chat-template=internvl-official is the server's own"),
        ("--max-dynamic-patch 4", "--max-dynamic-patch=4 is the server's own"),
        ("--bad-words cat", "bad_words cannot be asked of a server"),
    ],
)
def test_what_is_the_servers_own_is_refused(
    double: Double, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    status = chat(monkeypatch, double, "hello\n", *flags.split())
    assert message in capsys.readouterr().err
    assert not double.bodies
    assert status == (0 if "bad_words" in message else 2)
