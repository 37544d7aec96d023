"""The chat page as programs meet it: its one function, its defaults, its failures in words, and what it refuses."""

import asyncio
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from tests.messages import mentions
from tests.processes import PATIENCE_S
from tests.serving.openai.openai_double import Double, Refusal, gradios_loops_closed
from tilewise.client import APIClient, to_data_url
from tilewise.demo import picture_path
from tilewise.errors import ImageTooLargeError, InputError
from tilewise.inputs.media.policy import ImageLimits
from tilewise.types import TilingParameters

gr: Any = pytest.importorskip("gradio", reason="gradio (the extra `ui`) is not installed")
gradio_client: Any = pytest.importorskip("gradio_client")
import httpx  # noqa: E402
from PIL import Image  # noqa: E402

from tilewise.cli import main as cli  # noqa: E402
from tilewise.page.app import Page, create_page, launch_page  # noqa: E402
from tilewise.page.frame import FramedApp  # noqa: E402
from tilewise.page.turns import read_turns  # noqa: E402
from tilewise.page.uploads import UploadLimits, Uploads  # noqa: E402

# Of gradio itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

GO_ON = ("word ",) * 10_000
LEAVE_S = 10.0


@pytest.fixture(scope="module")
def double() -> Iterator[Double]:
    with Double() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest) -> None:
    if "double" in request.fixturenames:
        double = request.getfixturevalue("double")
        fresh = Double()
        double.script, double.cut, double.delay_s = fresh.script, fresh.cut, 0.0
        double.asked.clear()
        double.left.clear()


@pytest.fixture(scope="module")
def address(double: Double, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    with gradios_loops_closed(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "stored"))
        blocks = create_page(APIClient(double.url, "secret"), model="some/model", code_url="http://127.0.0.1:23333")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        yield launch_page(blocks, "127.0.0.1", port)
        blocks.close(verbose=False)


@pytest.fixture
def program(address: str, tmp_path: Path) -> Any:
    return gradio_client.Client(address, verbose=False, download_files=str(tmp_path))


def ask(program: Any, text: str, *files: Path, **settings: Any) -> tuple[str, ...]:
    message = {"text": text, "files": [gradio_client.handle_file(str(file)) for file in files]}
    return program.predict(message, api_name="/chat", **settings)


def test_a_program_asks_about_a_picture_with_the_pages_defaults(double: Double, program: Any) -> None:
    said, look, curl, sdk, pipeline = ask(program, "请描述图中内容", picture_path())
    assert said == "The answer is 42."
    assert "7 × 256 = 1,792" in look
    assert "1,831" in look
    (sent,) = double.bodies
    picture, text = sent["messages"][0]["content"]
    assert picture == {"type": "image_url", "image_url": {"url": to_data_url(picture_path())}}
    assert text == {"type": "text", "text": "请描述图中内容"}
    settings = {name: sent[name] for name in ("max_tokens", "top_p", "top_k", "temperature")}
    assert settings == {"max_tokens": 512, "top_p": 0.8, "top_k": 50, "temperature": 0.7}
    assert sent["skip_special_tokens"] is False
    assert "http://127.0.0.1:23333/v1" in curl
    assert "http://127.0.0.1:23333/v1" in sdk
    assert "some/model" in pipeline
    assert "secret" not in curl + sdk + pipeline
    assert {key for _, _, key in double.asked} == {"Bearer secret"}


def test_a_conversation_keeps_its_pictures_and_settings_are_sent(double: Double, program: Any) -> None:
    ask(program, "one", picture_path(), picture_path())
    ask(program, "two", max_tokens=8, temperature=0, max_tiles=4, system="Be brief.")
    sent = double.bodies[1]
    roles = [message["role"] for message in sent["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in sent["messages"][1]["content"]] == ["image_url", "image_url", "text"]
    assert {part["image_url"]["max_dynamic_patch"] for part in sent["messages"][1]["content"][:2]} == {4}
    assert sent["messages"][2]["content"] == "The answer is 42."
    assert (sent["max_tokens"], sent["temperature"]) == (8, 0)


def test_boxes_are_drawn_and_their_marks_not_shown(double: Double, program: Any) -> None:
    double.script = lambda body: ("<ref>", "sun", "</ref>", "<box>", "[[1, 2, 300, 400]]", "</box>")
    said, look, *_ = ask(program, "where?", picture_path())
    assert said == "sun [[1, 2, 300, 400]]"
    assert "left:0.1%;top:0.2%" in look


def test_the_chat_is_the_only_function_for_programs(program: Any) -> None:
    assert list(program.view_api(return_format="dict", all_endpoints=True)["named_endpoints"]) == ["/chat"]
    assert not program.view_api(return_format="dict", all_endpoints=True)["unnamed_endpoints"]


def test_a_program_that_cancels_stops_the_answer(double: Double, program: Any) -> None:
    double.script, double.delay_s = lambda body: GO_ON, 0.01
    job = program.submit({"text": "go on", "files": []}, api_name="/chat")
    next(iter(job))
    job.cancel()
    assert double.left.wait(LEAVE_S)


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (Refusal(429, "The queue of 8 is full.", "queue_full"), "busy"),
        (Refusal(400, "9000 tokens do not fit into 8192.", "context_length_exceeded"), "内容过长"),
        (Refusal(400, "temperature must be in [0, 2]."), "refused"),
        (Refusal(500, "The engine failed.", "engine_error"), "服务没有响应或出错"),
        (Refusal(200, "The engine is gone.", "engine_error", before=("half ",)), "服务没有响应或出错"),
    ],
)
def test_failures_are_told_in_words(double: Double, program: Any, refusal: Refusal, words: str) -> None:
    double.script = lambda body: refusal
    said, *_ = ask(program, "hello")
    assert words in said
    assert said.endswith(refusal.message)
    assert said.startswith(("⚠️", *refusal.before))
    double.script = lambda body: ("well",)
    ask(program, "again")
    sent = double.bodies[1]["messages"]
    assert [message["content"] for message in sent[:-1]] == (
        [[{"type": "text", "text": "hello"}], *refusal.before] if refusal.before else []
    )


def test_what_is_no_picture_is_refused_before_the_server_is_asked(double: Double, program: Any, tmp_path: Path) -> None:
    fake = tmp_path / "fake.png"
    fake.write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    said, *_ = ask(program, "what?", fake)
    assert "图片无法使用" in said
    assert not double.bodies


def test_a_server_that_is_down_is_told_on_the_page_and_by_the_chat() -> None:
    with Double() as gone:
        page = Page(APIClient(gone.url), None, gone.url)
    head, _ = page.greet()
    assert "does not answer" in head
    assert "没有响应" in head


@pytest.mark.parametrize(("is_demo", "is_random"), [(True, False), (True, True), (False, False)])
def test_the_page_says_what_the_demo_model_can_do_or_that_weights_are_random(is_demo: bool, is_random: bool) -> None:
    with Double() as double:
        double.cut |= {"is_demo": is_demo, "is_random": is_random, "max_dynamic_patch": 6}
        head, most = Page(APIClient(double.url), None, double.url).greet()
    assert ("drawn scenes" in head) == ("演示模型" in head) == (is_demo and not is_random)
    assert ("never trained" in head) == ("随机" in head) == is_random
    assert most == 6


def test_a_question_without_an_answer_is_left_out_of_the_conversation() -> None:
    def turn(role: str, content: Any) -> dict[str, Any]:
        return {"role": role, "content": content}

    history = [
        turn("user", [{"type": "text", "text": "failed"}]),
        {**turn("assistant", "⚠️ The server is busy."), "metadata": {"id": "failed"}},
        turn("user", [{"type": "file", "file": {"path": "a.png"}}]),
        turn("user", [{"type": "text", "text": "one"}]),
        turn("assistant", [{"type": "text", "text": "yes"}]),
        turn("user", "stopped at once"),
        turn("assistant", ""),
    ]
    sent = read_turns(history, {"text": "two", "files": [{"path": "b.png"}]})
    texts = [m["content"] if isinstance(m["content"], str) else m["content"][-1]["text"] for m in sent]
    assert texts == ["one", "yes", "two"]
    assert [m["content"][0]["image_url"]["url"] for m in (sent[0], sent[2])] == ["a.png", "b.png"]
    edited = read_turns([*history, turn("user", [{"path": "c.png"}])], "three")
    assert edited[-1] == {"role": "user", "content": [*picture("c.png"), {"type": "text", "text": "three"}]}
    assert edited[:-1] == sent[:-1]


def test_an_answer_may_hold_any_sign_and_stays_whole_in_the_conversation(double: Double, program: Any) -> None:
    for said in ("No. ⚠️ Never: the gas is poisonous.", "⚠️ Careful: hot."):
        double.script = lambda body, said=said: (said,)
        assert ask(program, "May I?")[0] == said
    ask(program, "And then?")
    sent = [message["content"] for message in double.bodies[-1]["messages"]]
    assert sent[1::2] == ["No. ⚠️ Never: the gas is poisonous.", "⚠️ Careful: hot."]
    assert len(sent) == 5


def test_pictures_beyond_what_the_api_takes_are_refused(double: Double, program: Any) -> None:
    said, *_ = ask(program, "what?", *[picture_path()] * 17)
    assert "at most 16" in said
    assert not double.bodies


def test_too_many_pictures_are_refused_before_one_is_read(double: Double) -> None:
    page = Page(APIClient(double.url), None, double.url, load=lambda *_: pytest.fail("a picture was read"))
    with pytest.raises(InputError, match="at most 16"):
        page.show_tiles([{"role": "user", "content": picture("a.png") * 17}], TilingParameters(), 256)


def test_of_a_conversations_pictures_one_is_held_in_full_and_together_they_are_bounded(double: Double) -> None:
    loaded: list[Any] = []

    def load(*_: Any) -> Any:
        assert all(max(before.size) < 1000 for before in loaded)
        loaded.append(Image.new("RGB", (1000, 1000)))
        return loaded[-1]

    page = Page(APIClient(double.url), None, double.url, ImageLimits(max_request_pixels=2_000_000), load)
    _, last = page.show_tiles([{"role": "user", "content": picture("a.png") * 2}], TilingParameters(), 256)
    assert last is loaded[1]
    loaded.clear()
    with pytest.raises(ImageTooLargeError, match="2000000"):
        page.show_tiles([{"role": "user", "content": picture("a.png") * 9}], TilingParameters(), 256)
    assert len(loaded) == 3


def test_nobodys_upload_waits_for_the_viewing_of_pictures(double: Double) -> None:
    is_viewed = threading.Event()

    def load(*_: Any) -> Any:
        assert is_viewed.wait(PATIENCE_S)
        return Image.new("RGB", (8, 8))

    page = Page(APIClient(double.url), None, double.url, load=load)
    message = {"text": "what?", "files": [{"path": str(picture_path())}]}

    async def view() -> None:
        async with aclosing(page.answer(message, [])) as answer:
            await anext(answer)

    async def ask() -> None:
        async with asyncio.timeout(PATIENCE_S):
            viewers = [asyncio.create_task(view()) for _ in range(40)]
            await asyncio.sleep(0.2)
            await asyncio.to_thread(is_viewed.set)  # as an upload is written
            await asyncio.gather(*viewers)

    asyncio.run(ask())


def test_the_code_comes_first_and_last_and_is_not_sent_again_in_between(double: Double) -> None:
    async def ask() -> list[tuple[Any, ...]]:
        page = Page(APIClient(double.url), None, double.url)
        return [given async for given in page.answer("hello", [])]

    double.script = lambda body: ("a", "b", "c")
    first, *between, last = asyncio.run(ask())
    assert first[2:] == last[2:]
    assert "hello" in last[2]
    assert between
    assert all(code == gr.skip() for given in between for code in given[2:])


def picture(path: str) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": path}}]


def test_no_file_of_the_machine_is_read_for_a_browser(address: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    package = Path(sys.modules["tilewise"].__file__ or "")
    for path in (
        "/etc/passwd",
        "/etc/hostname",
        secret,
        package,
        package.parent / "demo",
        Path.cwd() / "pyproject.toml",
    ):
        for spelling in (str(path), f"{picture_path()}/../..{path}", f"//{path}"):
            response = httpx.get(f"{address}gradio_api/file={spelling}", trust_env=False, timeout=PATIENCE_S)
            assert response.status_code in (403, 404), spelling
            assert b"root:" not in response.content
    picture = httpx.get(f"{address}gradio_api/file={picture_path()}", trust_env=False, timeout=PATIENCE_S)
    assert picture.content == picture_path().read_bytes()


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:9/a.png", "https://example.org/a.png"])
def test_no_file_of_the_machine_and_no_address_is_read_as_a_picture(double: Double, program: Any, path: str) -> None:
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png", "url": path}
    with pytest.raises(Exception, match=r"Send the picture itself|Cannot move|upload"):
        program.predict({"text": "what?", "files": [file]}, api_name="/chat")
    assert not double.bodies


EVIL = "http://evil.example:6006"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:6006", "Origin": EVIL},
        {"Host": "192.168.1.5:6006", "Origin": EVIL},
        {"Host": "localhost:6006", "Origin": "http://localhost:8000"},
        {"Host": "192.168.1.5:6006", "Origin": "null"},
        {"Host": "localhost@evil.example"},
        {"Host": "localhost.evil.example"},
    ],
)
def test_pages_of_other_sites_are_refused_and_get_no_leave(address: str, double: Double, headers: dict) -> None:
    asked = {**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    body = {"data": [{"text": "x"}, 512, 0.7, 0.8, 50, 12, ""]}
    with httpx.Client(base_url=address, trust_env=False, timeout=PATIENCE_S) as http:
        for answer in (
            http.get("/", headers=headers),
            http.post("/gradio_api/call/chat", headers=headers, json=body),
            http.options("/gradio_api/call/chat", headers=asked),
        ):
            assert answer.status_code == 403
            assert "--allowed-hosts" in answer.text
            assert not [name for name in answer.headers if name.startswith("access-control-allow")]
    assert not double.bodies


@pytest.mark.parametrize(
    "host", ["localhost:6006", "127.0.0.1", "[::1]:6006", "192.168.1.5:6006", "page.example", "a.b.example:80"]
)
def test_the_pages_own_names_are_answered_and_grant_nobody_else_leave(double: Double, host: str) -> None:
    async def ask(headers: dict[str, str]) -> httpx.Response:
        app = FramedApp(["page.example", ".b.example"], Uploads(Path("unused"), UploadLimits()), {})
        app.add_api_route("/config", lambda: "yes")
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.get("/config", headers=headers)

    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        answer = asyncio.run(ask(headers))
        assert answer.json() == "yes"
        assert not [name for name in answer.headers if name.startswith("access-control-allow")]
    assert asyncio.run(ask({"Host": host, "Origin": "https://page.example"})).status_code == 200


def test_files_larger_than_the_limit_are_refused(address: str) -> None:
    files = {"files": ("a.png", picture_path().read_bytes().ljust((20 << 20) + 1))}
    response = httpx.post(f"{address}gradio_api/upload", files=files, trust_env=False, timeout=PATIENCE_S)
    assert response.status_code == 413


def test_the_page_bounds_what_a_browser_loads_and_names_no_other_host(address: str) -> None:
    response = httpx.get(address, trust_env=False, timeout=PATIENCE_S)
    assert "default-src 'self' data: blob:" in response.headers["content-security-policy"]
    assert "tilewise-language" in response.text
    assert "fonts.googleapis" not in response.text
    settings = httpx.get(f"{address}config", trust_env=False, timeout=PATIENCE_S).json()
    assert settings["analytics_enabled"] is False
    assert not settings.get("mcp_server")
    for closed in ("monitoring", "docs", "redoc", "gradio_api/mcp/"):
        assert httpx.get(address + closed, trust_env=False, timeout=PATIENCE_S).status_code in (403, 404), closed


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--server http://127.0.0.1:9 MODEL", ("MODEL", "--server")),
        ("--server http://127.0.0.1:9 --tp 1", ("--tp=1", "--server")),
        ("--server ftp://x", ("ftp://x",)),
        ("--server-prot 1", ("--server-prot", "--server-port")),
    ],
)
def test_flags_that_would_not_be_honoured_are_refused(
    line: str, told: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The command sets it for its own process; here other tests have a page that needs theirs.
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ.get("GRADIO_TEMP_DIR", ""))
    try:
        status = cli.main(["serve", "gradio", *line.split()])
    except SystemExit as left:
        status = left.code
    assert status == 2
    assert re.search(mentions(*told), capsys.readouterr().err)
