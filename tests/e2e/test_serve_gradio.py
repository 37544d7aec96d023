"""`tilewise serve gradio` as a process: its own server, its doors, its end."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio (the extra `ui`) is not installed")
import httpx

from tests.processes import PATIENCE_S, run_command, start_process
from tilewise.demo import picture_path

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "tilewise", "serve", "gradio", "--server-port", str(port), "--session-len", "4096"]
    with start_process(command, stderr=subprocess.PIPE, env=environment, encoding="utf-8") as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        opened = next((line for line in lines if line.startswith("Open ")), None)
        assert opened is not None, "the page did not open"
        yield process, opened.split()[1]


def children(pid: int) -> list[int]:
    own: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():  # a child is that of the thread that started it
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # which may have ended
            own += map(int, (task / "children").read_text().split())
    return own + [deeper for child in own for deeper in children(child)]


def listening(pids: list[int]) -> set[str]:
    """The addresses that these processes listen at, as the kernel writes them."""
    sockets: set[str] = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(link)))
            except FileNotFoundError:
                continue
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux' /proc")
def test_it_serves_the_embedded_model_on_loopback_alone_and_leaves_nothing_behind(
    page: tuple["subprocess.Popen[str]", str], tmp_path: Path
) -> None:
    process, address = page
    assert httpx.get(address, trust_env=False, timeout=PATIENCE_S).status_code == 200
    family = [process.pid, *children(process.pid)]
    assert len(family) >= 2
    assert listening(family) == {"0100007F"}
    files = {"files": ("a.png", picture_path().read_bytes())}
    upload = httpx.post(f"{address}gradio_api/upload", files=files, trust_env=False, timeout=PATIENCE_S)
    assert Path(upload.json()[0]).is_relative_to(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0
    deadline = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in family[1:]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in family[1:] if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.glob("tilewise-*"))


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux' /proc")
def test_the_port_of_its_own_server_is_never_free_for_others(page: tuple["subprocess.Popen[str]", str]) -> None:
    process, _ = page
    (server, *_) = children(process.pid)
    flags = Path(f"/proc/{server}/cmdline").read_text().split("\0")
    assert any(flag.startswith("--server-fd=") for flag in flags)
    assert not any(flag.startswith("--server-port") for flag in flags)
    assert listening([server]) == {"0100007F"}


def wait_until_gone(pids: list[int]) -> list[int]:
    """The processes that do not end; one that nobody has waited for yet has ended too."""
    deadline = time.monotonic() + PATIENCE_S
    while (alive := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux' /proc")
def test_a_page_that_is_killed_takes_its_server_and_engine_along(
    page: tuple["subprocess.Popen[str]", str], tmp_path: Path
) -> None:
    process, address = page
    files = {"files": ("a.png", picture_path().read_bytes())}
    upload = httpx.post(f"{address}gradio_api/upload", files=files, trust_env=False, timeout=PATIENCE_S)
    assert Path(upload.json()[0]).exists()
    family = children(process.pid)
    assert len(family) >= 2
    process.kill()
    assert not wait_until_gone(family)
    assert not list(tmp_path.glob("tilewise-*"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux' /proc")
def test_a_page_that_is_killed_while_its_model_loads_leaves_nothing_running(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "tilewise", "serve", "gradio"]
    with start_process(command, stderr=subprocess.DEVNULL, env=environment) as process:
        deadline = time.monotonic() + PATIENCE_S
        while len(family := children(process.pid)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        assert not wait_until_gone(family)
    assert not list(tmp_path.glob("tilewise-page-*"))


def test_a_model_that_cannot_be_served_is_told_and_ends_the_page() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-m", "tilewise", "serve", "gradio", "no-such-folder/at/all"]
    done = run_command(command, env=environment)
    assert done.returncode == 1
    assert "no-such-folder" in done.stderr
    assert done.stderr.endswith("tilewise: The model cannot be served; the lines above say why.\n")
