"""The page's disk as strangers meet it over HTTP: what is taken, refused, and left when they are gone."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.processes import PATIENCE_S
from tests.serving.openai.openai_double import Double, gradios_loops_closed
from tilewise.client import APIClient
from tilewise.demo import picture_path

gr: Any = pytest.importorskip("gradio", reason="gradio (the extra `ui`) is not installed")
gradio_client: Any = pytest.importorskip("gradio_client")
import httpx  # noqa: E402

from tilewise.page.app import create_page, launch_page  # noqa: E402
from tilewise.page.uploads import UploadLimits  # noqa: E402

# Of gradio itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PNG = b"\x89PNG\r\n\x1a\n".ljust(1 << 20, b"x")
FORM = "multipart/form-data; boundary=x"
BEGUN = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
LIMITS = UploadLimits(
    session_bytes=4 << 20,
    session_files=6,
    total_bytes=10 << 20,
    grace_s=0.1,
    guest_s=0.5,
    settled_s=0.0,
    patience_s=2.0,
    request_bytes=32 << 20,
    json_bytes=2 << 20,
    address_json_bytes=3 << 20,
)


class OpenPage:
    """A page with small limits, its folder, and the part of a browser that speaks HTTP."""

    def __init__(self, address: str, blocks: Any, folder: Path) -> None:
        self.address = address
        self.blocks = blocks
        self.folder = folder
        self.own = set[Path]()
        self.own = set(self.stored())

    def visitor(self, language: str = "en") -> httpx.Client:
        cookies = {"tilewise-language": language}
        return httpx.Client(base_url=self.address, trust_env=False, timeout=PATIENCE_S, cookies=cookies)

    def stored(self) -> list[Path]:
        found = [Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names]
        return [path for path in found if path not in self.own]

    def stored_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.stored() if path.exists())

    def find_function(self, name: str) -> int:
        (number,) = (number for number, function in self.blocks.fns.items() if function.name == name)
        return number

    def call(self, http: httpx.Client, number: int, data: list[Any], **more: Any) -> httpx.Response:
        body = {"fn_index": number, "data": data, "session_hash": "s", **more}
        return http.post("gradio_api/run/predict", json=body)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    folder = tmp_path_factory.mktemp("stored")
    with Double() as double, gradios_loops_closed(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        blocks = create_page(APIClient(double.url))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        page = OpenPage(launch_page(blocks, "127.0.0.1", port, upload_limits=LIMITS), blocks, folder)
        yield page
        with page.visitor() as http:
            upload(http)
            assert page.stored()
        blocks.close(verbose=False)
        assert not page.stored(), "the page's end takes all uploads away"


@pytest.fixture(autouse=True)
def emptied(page: OpenPage) -> None:
    """Nothing is left of the test before."""
    wait(lambda: not page.stored())


def upload(http: httpx.Client, data: bytes = PNG, name: str = "a.png") -> httpx.Response:
    return http.post("gradio_api/upload", files={"files": (name, data)})


@contextmanager
def session(http: httpx.Client) -> Iterator[None]:
    """Have the page open, as a browser has: its heartbeat runs."""
    http.get("/")
    with http.stream("GET", "gradio_api/heartbeat/abc") as heartbeat:
        lines = heartbeat.iter_lines()  # its end would close the connection
        next(lines)
        yield


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("language", "words"), [("en", "is no picture"), ("zh-CN", "无法识别为图片")])
@pytest.mark.parametrize("data", [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7" + bytes(5 << 20)])
def test_what_is_no_picture_is_refused_in_the_pages_language_whatever_its_name(
    page: OpenPage, data: bytes, language: str, words: str
) -> None:
    with page.visitor(language) as http:
        refused = upload(http, data)
    assert refused.status_code == 415
    assert words in refused.text
    assert not page.stored()


def test_a_picture_is_kept_under_a_name_that_says_its_format(page: OpenPage) -> None:
    with page.visitor() as http, session(http):
        (path,) = upload(http, PNG, "../x.html").json()
        assert Path(path).name == "x.html.png"
        assert Path(path).read_bytes() == PNG
        assert Path(path).is_relative_to(page.folder)
        shown = http.get(f"gradio_api/file={path}")
        assert shown.headers["content-type"] == "image/png"


def test_a_session_is_refused_beyond_its_quota_and_leaves_nothing_behind(page: OpenPage) -> None:
    with page.visitor() as http, session(http):
        assert [upload(http).status_code for _ in range(6)] == [200] * 4 + [413] * 2
        assert page.stored_bytes() == 4 << 20
        assert "4 MB" in upload(http).text
        both = http.post("gradio_api/upload", files=[("files", ("a.png", PNG)), ("files", ("b.png", PNG))])
        assert both.status_code == 413
        assert page.stored_bytes() == 4 << 20
    wait(lambda: not page.stored())


def test_a_page_that_is_loaded_again_keeps_its_pictures(page: OpenPage) -> None:
    with page.visitor() as http, session(http):
        upload(http)
        with session(http):
            pass
        with page.visitor() as other, session(other):
            upload(other)
        wait(lambda: len(page.stored()) == 1)
    wait(lambda: not page.stored())


def test_who_never_opens_the_page_keeps_little_for_moments_and_locks_nobody_out(page: OpenPage) -> None:
    with page.visitor() as stranger, page.visitor() as http, session(http):
        upload(http)
        mine = set(page.stored())
        for _ in range(12):
            assert upload(stranger).status_code == 200
            assert page.stored_bytes() <= (4 + 1) << 20
        assert mine <= set(page.stored())
        wait(lambda: set(page.stored()) == mine)
    wait(lambda: not page.stored())


def test_bytes_are_counted_while_they_come_and_a_refused_upload_is_read_to_its_end(page: OpenPage) -> None:
    seen: list[int] = []

    def body() -> Iterator[bytes]:
        yield BEGUN
        for _ in range(24):
            yield PNG
            seen.append(page.stored_bytes())
        yield b"\r\n--x--\r\n"

    kind = {"content-type": FORM}
    with page.visitor() as http, session(http):
        refused = http.post("gradio_api/upload", content=body(), headers=kind)
        assert refused.status_code == 413
        assert not page.stored()
    assert len(seen) == 24
    assert max(seen) <= 4 << 20


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b""),
        (FORM, b"no form"),
        (
            FORM,
            b"--x\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\n" + PNG,
        ),
        (
            FORM,
            b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--x--\r\n',
        ),
        (FORM, b"--x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n"),
    ],
)
def test_what_is_no_whole_form_is_refused_and_leaves_nothing(page: OpenPage, kind: str, body: bytes) -> None:
    with page.visitor() as http:
        refused = http.post("gradio_api/upload", content=body, headers={"content-type": kind})
    assert refused.status_code == 400
    assert not page.stored()


def test_who_leaves_in_the_middle_of_an_upload_leaves_nothing(page: OpenPage) -> None:
    is_stored = threading.Event()

    def body() -> Iterator[bytes]:
        yield BEGUN + PNG
        wait(lambda: bool(page.stored()))
        is_stored.set()
        raise ConnectionError

    with page.visitor() as http, pytest.raises(ConnectionError):
        http.post("gradio_api/upload", content=body(), headers={"content-type": FORM})
    assert is_stored.is_set()
    wait(lambda: not page.stored())


def test_a_picture_that_is_not_kept_any_more_is_told_and_may_be_attached_again(page: OpenPage, tmp_path: Path) -> None:
    program = gradio_client.Client(page.address, verbose=False, download_files=str(tmp_path))
    picture = gradio_client.handle_file(str(picture_path()))
    program.predict({"text": "one", "files": [picture]}, api_name="/chat")
    for path in page.stored():
        path.unlink()
    said, *_ = program.predict({"text": "two", "files": []}, api_name="/chat")
    program.close()
    assert "Attach it again" in said
    assert "重新上传" in said
    assert str(page.folder) not in said


@pytest.mark.slow  # gradio notices that a program has left at its next heartbeat, 15 s apart
def test_a_programs_pictures_stay_while_it_runs_and_go_with_it(page: OpenPage, tmp_path: Path) -> None:
    program = gradio_client.Client(page.address, verbose=False, download_files=str(tmp_path))
    picture = gradio_client.handle_file(str(picture_path()))
    program.predict({"text": "one", "files": [picture]}, api_name="/chat")
    time.sleep(2 * LIMITS.guest_s)
    assert page.stored()
    said, *_ = program.predict({"text": "two", "files": []}, api_name="/chat")
    assert said == "The answer is 42."
    program.close()
    wait(lambda: not page.stored())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "gradio_api/deep_link?session_hash=s"),
        ("GET", "gradio_api/upload_progress?upload_id=x"),
        ("GET", "gradio_api/file=http://127.0.0.1:9/a.png"),
        ("GET", "gradio_api/file=HTTPS://127.0.0.1:9/a.png"),
        ("GET", "gradio_api/file/http://127.0.0.1:9/a.png"),
        ("GET", "gradio_api/proxy=http://127.0.0.1:9/a.png"),
        ("GET", "gradio_api/vibe-code"),
        ("GET", "monitoring/summary"),
        ("POST", "gradio_api/process_recording"),
        ("POST", "gradio_api/component_server"),
        ("POST", "gradio_api/vibe-edit"),
        ("POST", "gradio_api/stream/x"),
        ("POST", "gradio_api/upload/"),
        ("POST", "login"),
        ("PUT", "gradio_api/upload"),
    ],
)
def test_routes_that_store_fetch_or_write_beside_the_upload_are_closed(page: OpenPage, method: str, path: str) -> None:
    with page.visitor() as http:
        answer = http.request(method, path, files=None if method == "GET" else {"video": ("a.mp4", PNG)})
    assert answer.status_code == 404
    assert not page.stored()


def test_a_request_larger_than_a_conversation_is_not_read(page: OpenPage) -> None:
    body = json.dumps({"data": ["x" * (3 << 20)]}).encode()

    def pieces() -> Iterator[bytes]:
        yield body

    with page.visitor() as http:
        refused = http.post("gradio_api/call/chat", content=body, headers={"content-type": "application/json"})
        assert refused.status_code == 413
        with pytest.raises(httpx.HTTPError):
            http.post(
                "gradio_api/call/chat", content=pieces(), headers={"content-type": "application/json"}
            ).raise_for_status()


def test_requests_of_one_address_are_bounded_together_and_slow_ones_end(page: OpenPage) -> None:
    body = b'{"data": ["' + b"x" * (7 << 18)
    head = b"POST /gradio_api/call/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with page.visitor() as http:

        def ask() -> int:
            return http.post("gradio_api/call/chat", content=body + b'"]}').status_code

        def is_refused_beside_a_slow_one() -> bool:
            with socket.create_connection(("127.0.0.1", http.base_url.port or 0)) as slow:
                slow.settimeout(PATIENCE_S)
                slow.sendall(head + b"Content-Length: %d\r\n\r\n" % (len(body) + 1) + body)
                status = ask()
                slow.recv(1 << 16)  # an answer or none: it ends, though its last byte never comes
            return status == 503

        wait(is_refused_beside_a_slow_one)
        wait(lambda: ask() != 503)


def test_an_upload_below_the_least_rate_ends_and_leaves_nothing(page: OpenPage) -> None:
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\n" % FORM.encode()
    with page.visitor() as http, socket.create_connection(("127.0.0.1", http.base_url.port or 0)) as slow:
        slow.settimeout(PATIENCE_S)
        slow.sendall(head + b"Content-Length: 10000000\r\n\r\n" + BEGUN + PNG)
        wait(lambda: bool(page.stored()))
        answer = slow.recv(1 << 16)
    assert b" 400 " in answer.splitlines()[0]
    wait(lambda: not page.stored())


def test_a_refused_upload_is_not_read_for_ever(page: OpenPage) -> None:
    num_sent = 0

    def body() -> Iterator[bytes]:
        nonlocal num_sent
        yield BEGUN
        while num_sent < 200:
            num_sent += 1
            yield PNG

    with page.visitor() as http, session(http), contextlib.suppress(httpx.TransportError):
        refused = http.post("gradio_api/upload", content=body(), headers={"content-type": FORM})
        assert refused.status_code == 413
    assert num_sent < 100


def test_a_refusal_names_the_picture_that_is_refused(page: OpenPage) -> None:
    files = [("files", ("good.png", PNG)), ("files", ("b<i>ad.png", b"no picture at all"))]
    with page.visitor() as http:
        refused = http.post("gradio_api/upload", files=files)
    assert refused.status_code == 415
    assert refused.text.startswith("biad.png: This is no picture")
    assert not page.stored()


def test_a_page_asks_whether_its_session_is_open(page: OpenPage) -> None:
    with page.visitor() as http:
        with session(http):
            assert http.get("tilewise/session").text == "open"
        wait(lambda: http.get("tilewise/session").text == "closed")


def test_no_component_fetches_an_address_that_a_value_names(page: OpenPage) -> None:
    with Double() as canary, page.visitor() as http:
        file = {"path": f"{canary.url}/a.png", "meta": {"_type": "gradio.FileData"}, "url": f"{canary.url}/a.png"}
        for number, function in page.blocks.fns.items():
            for place in range(len(function.inputs)):
                if not function.inputs[place].stateful:
                    data = [getattr(component, "value", None) for component in function.inputs]
                    data[place] = file
                    answer = page.call(http, number, data)
                    # Gradio itself refuses loopback, in other words.
                    assert answer.status_code == 500
                    assert "picture itself" in answer.text, (function.name, function.inputs[place])
        assert not canary.asked
    assert not page.stored()


def test_a_restored_conversation_names_no_file_of_the_working_directory(
    page: OpenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    kept = [[{"role": "user", "content": [{"type": "file", "file": {"path": str(tmp_path / "secret.png")}}]}]]
    with page.visitor() as http:
        number = page.find_function("_load_conversation")
        answer = page.call(http, number, [0, kept], event_data={"index": 0, "value": None})
        assert answer.status_code == 200
        assert "Attach it again" in answer.text
        assert "secret" not in answer.text
    assert not page.stored()


def test_after_a_restart_a_saved_chat_is_shown_without_its_pictures_and_the_others_as_they_were(
    page: OpenPage, tmp_path: Path
) -> None:
    with Double() as double, gradios_loops_closed(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "before"))
        before = create_page(APIClient(double.url))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with httpx.Client(base_url=launch_page(before, "127.0.0.1", port), trust_env=False) as http, session(http):
            (path,) = upload(http).json()
        before.close(verbose=False)
    file = {"path": path, "url": None, "meta": {"_type": "gradio.FileData"}}
    chats = [
        [{"role": "user", "content": [{"type": "file", "file": file}, {"type": "text", "text": "one"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "two"}]}],
    ]
    with page.visitor() as http:
        number = page.find_function("_load_conversation")
        for index, told in enumerate(("one", "two")):
            answer = page.call(http, number, [index, chats], event_data={"index": index, "value": None})
            assert answer.status_code == 200
            assert told in answer.text
            assert ("Attach it again" in answer.text) == (index == 0)
            assert path not in answer.text


def test_a_text_or_a_chat_longer_than_any_session_is_refused(page: OpenPage) -> None:
    part = {"type": "text", "text": "x" * 500_000}
    chat = [{"role": "user", "content": [part], "metadata": None, "options": None}] * 3
    with page.visitor() as http:
        number = page.find_function("_edit_message")
        refused = [
            page.call(http, number, [chat[:1]], event_data={"index": 0, "value": "x" * 100_001, "previous_value": ""})
        ]
        refused.append(page.call(http, number, [chat], event_data={"index": 0, "value": "x"}))
        kept = page.call(
            http, number, [chat[:1]], event_data={"index": 0, "value": "x" * 100_000, "previous_value": ""}
        )
    assert [answer.status_code for answer in refused] == [500, 500]
    assert "at most 100000 characters" in refused[0].text
    assert "Start a new one" in refused[1].text
    assert kept.status_code == 200


def test_a_question_longer_than_any_session_is_not_asked(page: OpenPage) -> None:
    program = gradio_client.Client(page.address, verbose=False)
    with pytest.raises(gradio_client.exceptions.AppError, match="at most 100000 characters"):
        program.predict({"text": "x" * 100_001, "files": []}, api_name="/chat")
    program.close()


def test_a_message_cannot_bring_a_component(page: OpenPage) -> None:
    part = {"type": "component", "component": "image", "value": None, "constructor_args": {}, "props": {}}
    message = {"role": "user", "content": [part], "metadata": None, "options": None}
    with page.visitor() as http:
        number = page.find_function("_edit_message")
        answer = page.call(http, number, [[message]], event_data={"index": 0, "value": "x"})
    assert answer.status_code == 500
    assert "text and pictures only" in answer.text
