"""An engine in a process of its own: what a thread cannot do, suffer or leave behind."""

import hashlib
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.engine.fakes import WAIT_S, Heard, start_process
from tests.engine.test_messages import make_junk
from tests.processes import start_process as start_command
from tilewise.config import EngineConfig
from tilewise.engine.launch import find_checkpoint, launch_engine
from tilewise.engine.messages import Abort, Heartbeat, encode
from tilewise.engine.process_client import MALLOC_OPTIONS, ProcessClient
from tilewise.errors import CapacityError, ConfigError, EngineError, InputError
from tilewise.types import FinishReason, ImageSpan, PreparedImage, Request

# Starts an engine as any script would, says so, and waits to be killed.
PARENT = """
import sys, threading
from tests.engine.fakes import start_process
client = start_process(sys.argv[1])
sys.stderr.write("started\\n")
threading.Event().wait()
"""


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_engine_path: None) -> Path:
    """Where engines put their files; children too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def open_engine(folder: Path) -> Iterator[Callable[..., ProcessClient]]:
    clients: list[ProcessClient] = []

    def start(script: str, **options: float) -> ProcessClient:
        clients.append(start_process(script, **options))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
        assert not client.is_alive()
    assert not list(folder.iterdir()), "files are left"


Open = Callable[..., ProcessClient]


def test_what_was_resolved_comes_back(open_engine: Open) -> None:
    client = open_engine("stay_silent")
    assert client.resolved.session_len == 99
    assert client.process_id != os.getpid()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads the child's environment under /proc")
@pytest.mark.parametrize("given", [None, "1"])
def test_the_process_keeps_freed_memory_unless_the_user_set_a_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, open_engine: Open, given: str | None
) -> None:
    name = "MALLOC_TRIM_THRESHOLD_"
    monkeypatch.delenv(name, raising=False)
    if given is not None:
        monkeypatch.setenv(name, given)
    environment = Path(f"/proc/{open_engine('stay_silent').process_id}/environ").read_bytes()
    kept = given or MALLOC_OPTIONS[name]
    assert f"{name}={kept}".encode() in environment.split(b"\0")


def test_only_the_user_can_reach_the_sockets(open_engine: Open, folder: Path) -> None:
    open_engine("stay_silent")
    (private,) = folder.iterdir()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    modes = {path.name: path.stat().st_mode for path in private.iterdir()}
    assert set(modes) == {"requests", "reports"}
    assert all(stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600 for mode in modes.values())


def test_junk_on_the_sockets_is_dropped_and_logged_on_both_sides(
    open_engine: Open, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = open_engine("answer_five")
    (private,) = folder.iterdir()
    mark = folder / "mark"
    junk = make_junk(mark)
    with caplog.at_level(logging.WARNING), zmq.Context() as context:
        for name, wrong_way in (("requests", encode(Heartbeat({}))), ("reports", encode(Abort("r")))):
            with socket.socket(socket.AF_UNIX) as plain:
                plain.connect(str(private / name))
                plain.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
            with context.socket(zmq.PUSH) as stranger:
                stranger.connect(f"ipc://{private / name}")
                for frames in [*junk, wrong_way]:
                    stranger.send_multipart(frames)
        dropped = "dropped"
        wait_until(lambda: sum(dropped in line for line in caplog.messages) == 2 * (len(junk) + 1))
        heard = Heard()
        client.submit(Request("r", (1,)), heard)
        assert heard.ended.wait(WAIT_S)
    assert heard.reasons == [FinishReason.STOP]
    assert client.is_alive()
    assert not mark.exists()


def test_a_big_picture_arrives_bit_by_bit(open_engine: Open) -> None:
    pixels = [os.urandom(4000 * 3000 * 3), os.urandom(3)]
    sizes = ((4000, 3000), (1, 1))
    images = tuple(PreparedImage(*size, data, 1, 1, False, bytes(32)) for size, data in zip(sizes, pixels, strict=True))
    heard = Heard()
    client = open_engine("hash_pixels")
    client.submit(Request("r", (1, 2), (ImageSpan(0, 1, 0), ImageSpan(1, 2, 1)), images), heard)
    del images
    assert heard.ended.wait(WAIT_S)
    assert heard.outputs[0].error == " ".join(hashlib.sha256(data).hexdigest() for data in pixels)


def test_a_request_that_cannot_be_sent_is_refused_and_its_id_stays_free(open_engine: Open) -> None:
    client, heard = open_engine("answer_five"), Heard()
    with pytest.raises(InputError):
        client.submit(Request("r", (2**70,)), heard)
    client.submit(Request("r", (1,)), heard)
    assert heard.ended.wait(WAIT_S)
    assert heard.reasons == [FinishReason.STOP]


def test_a_killed_engine_ends_every_request_with_error(open_engine: Open, caplog: pytest.LogCaptureFixture) -> None:
    sinks = [Heard() for _ in range(5)]
    client = open_engine("wait_at_gate")
    for number, sink in enumerate(sinks):
        client.submit(Request(f"r{number}", (1,), namespace="never"), sink)
    assert sinks[0].started.wait(WAIT_S)
    with caplog.at_level(logging.ERROR):
        os.kill(client.process_id, signal.SIGKILL)
        assert all(sink.ended.wait(WAIT_S) for sink in sinks)
    assert all(sink.reasons == [FinishReason.ERROR] for sink in sinks)
    assert not client.is_alive()
    assert "status -9" in caplog.text
    with pytest.raises(EngineError):
        client.submit(Request("late", (1,)), Heard())


@pytest.mark.parametrize(("script", "sign"), [("wait_at_gate", "started"), ("load forever", "loading")])
def test_a_killed_parent_takes_the_engine_and_its_files_along(
    script: str, sign: str, folder: Path, repository: Path
) -> None:
    path = os.pathsep.join((str(repository), str(repository / "src")))
    command = [sys.executable, "-c", PARENT, script]
    environment = {**os.environ, "PYTHONPATH": path}
    with start_command(command, stderr=subprocess.PIPE, env=environment) as parent:
        assert parent.stderr is not None
        assert parent.stderr.readline() == f"{sign}\n".encode()
        assert len(list(folder.iterdir())) == 1
        parent.kill()
        assert parent.stderr.read() == b"", "the stream ends once the engine, which has it too, is gone"
    assert not list(folder.iterdir())


def test_signals_to_the_whole_group_are_the_parents_to_answer(open_engine: Open) -> None:
    client, heard = open_engine("answer_five"), Heard()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(client.process_id, number)
    client.submit(Request("r", (1,)), heard)
    assert heard.ended.wait(WAIT_S)
    assert heard.reasons == [FinishReason.STOP]


def test_an_engine_that_does_not_end_is_killed(open_engine: Open) -> None:
    client, heard = open_engine("wait_at_gate", end_timeout_s=0.2), Heard()
    client.submit(Request("r", (1,), namespace="never"), heard)
    assert heard.started.wait(WAIT_S)
    client.close()
    assert heard.reasons == [FinishReason.ABORT]


def test_a_stopped_engine_shows_in_the_age_of_its_heartbeat_and_blocks_nobody(open_engine: Open) -> None:
    client, heard = open_engine("answer_five"), Heard()
    os.kill(client.process_id, signal.SIGSTOP)
    client.submit(Request("r", (1,)), heard)
    wait_until(lambda: client.stats()["heartbeat_age_s"] > 1.0)
    assert not heard.outputs
    os.kill(client.process_id, signal.SIGCONT)
    wait_until(lambda: client.stats()["heartbeat_age_s"] < 1.0)
    assert heard.ended.wait(WAIT_S)


def test_a_fork_that_ends_leaves_the_engine_to_its_parent(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    client, heard = open_engine("answer_five"), Heard()
    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: 1)
        client.close()
    client.submit(Request("r", (1,)), heard)
    assert heard.ended.wait(WAIT_S)
    assert heard.reasons == [FinishReason.STOP]


def test_a_refused_start_raises_the_engines_own_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="session_len=99") as refusal:
        start_process("refuse")
    assert refusal.value.param == "session_len"
    assert not list(folder.iterdir())


def test_a_broken_start_says_so_and_the_log_says_why(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(EngineError, match="could not start"):
        start_process("break")
    assert "RuntimeError: at address 0x7f00" in caplog.text
    with pytest.raises(EngineError, match="status 3"):
        start_process("die")
    assert not list(folder.iterdir())


def test_an_interrupt_in_loading_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(real(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        start_process("interrupt the parent")
    assert started[0].returncode is not None
    assert not list(folder.iterdir())


def test_a_folder_that_no_socket_fits_is_refused_with_the_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = folder / ("long" * 30)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(EngineError, match="TMPDIR"):
        start_process("answer_five")
    assert not list(deep.iterdir())


def test_real_engines_refuse_alike_in_either_place() -> None:
    refused: dict[type[Exception], dict[str, Any]] = {
        ConfigError: {"device": "cuda:99"},
        CapacityError: {"device": "cpu", "kv_cache_bytes": 1},
    }
    for kind, options in refused.items():
        said: list[str] = []
        config = EngineConfig.from_options(options)
        checkpoint = find_checkpoint(None, config)
        for in_process in (True, False):
            with pytest.raises(kind) as refusal:
                launch_engine(checkpoint, config, in_process=in_process, num_tokens=None)
            said.append(str(refusal.value))
        assert said[0] == said[1]
