"""Rows 7 and 36: decoding happens elsewhere, and that place may fail without harm."""

import fcntl
import io
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

import tilewise
from tests.processes import PATIENCE_S, run_command, start_process
from tilewise.errors import CapacityError, ImageError, ImageTooLargeError
from tilewise.inputs.media import decoder_worker
from tilewise.inputs.media import image_decoder as decoder_module
from tilewise.inputs.media.decoder_worker import read_exactly
from tilewise.inputs.media.image_decoder import ImageDecoder
from tilewise.inputs.media.policy import ImageLimits

LIMITS = ImageLimits()
FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]
ENVIRONMENT = {"PYTHONPATH": str(Path(tilewise.__file__).parents[1])}
needs_proc = pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="reads /proc")


def encoded(format_name: str = "PNG", size: tuple[int, int] = (4, 2)) -> bytes:
    noise = random.Random(7).randbytes(size[0] * size[1] * 3)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if format_name in ("GIF", "BMP") else {"exif": exif}
    Image.frombytes("RGB", size, noise).save(buffer, format_name, **options)
    return buffer.getvalue()


def build_slow_bmp(num_runs: int = 4_000_000) -> bytes:
    """A picture in runs of one pixel, each of which costs Pillow some lines of Python: seconds of CPU time."""
    body = b"\1\1" * num_runs + b"\0\1"
    start = 14 + 40 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, 7000, 7000, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + bytes(1024) + body


def wait_until_unread(process_id: int) -> None:
    """Wait until something lies in a stopped process's stdin: it has a picture."""
    deadline = time.monotonic() + PATIENCE_S
    num_bytes = bytearray(4)
    with open(f"/proc/{process_id}/fd/0", "rb", buffering=0) as stdin:
        while not int.from_bytes(num_bytes, sys.byteorder):
            assert time.monotonic() < deadline
            fcntl.ioctl(stdin, termios.FIONREAD, num_bytes)


def has_read(process_id: int, num_bytes: int) -> bool:
    """Whether a process has read so much, from wherever."""
    with suppress(FileNotFoundError, ProcessLookupError):
        found = re.search(r"rchar: (\d+)", Path(f"/proc/{process_id}/io").read_text())
        return found is not None and int(found[1]) > num_bytes
    return False


@pytest.fixture
def decoder():
    decoder = ImageDecoder(recycle_after=10**9)
    yield decoder
    decoder.close()
    assert decoder.process_id is None


def damaged(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed[: chance.randrange(len(changed))] if chance.random() < 0.1 else changed)


def decode_damaged(decoder: ImageDecoder, format_name: str, count: int) -> int:
    original, chance = encoded(format_name, (32, 24)), random.Random(f"{format_name} {count}")
    decoder.decode(original, LIMITS)
    worker, refused = decoder.process_id, 0
    for _ in range(count):
        try:
            width, height, pixels = decoder.decode(damaged(original, chance), LIMITS)
            assert len(pixels) == width * height * 3
        except ImageError:
            refused += 1
    assert decoder.process_id == worker
    return refused


@pytest.mark.parametrize("format_name", FORMATS)
def test_bit_flips_give_pictures_or_image_errors_and_the_worker_survives(format_name, decoder):
    assert decode_damaged(decoder, format_name, 400) > 0


@pytest.mark.slow
@pytest.mark.parametrize("format_name", FORMATS)
def test_ten_thousand_bit_flips_give_pictures_or_image_errors_and_the_worker_survives(format_name, decoder):
    assert decode_damaged(decoder, format_name, 2000) > 0


def test_no_process_runs_before_the_first_picture_nor_after_close():
    decoder = ImageDecoder()
    assert decoder.process_id is None
    decoder.decode(encoded(), LIMITS)
    process_id = decoder.process_id
    decoder.close()
    assert decoder.process_id is None
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)
    assert decoder.decode(encoded("BMP"), LIMITS)[:2] == (4, 2)
    decoder.close()


def test_a_killed_worker_is_replaced(decoder):
    decoder.decode(encoded(), LIMITS)
    first = decoder.process_id
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while decoder.process_id:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    decoder.decode(encoded("BMP"), LIMITS)
    assert decoder.process_id not in (None, first)


def test_a_worker_that_answers_too_late_is_killed_and_replaced_and_its_picture_is_not_blamed(decoder):
    decoder.decode(encoded(), LIMITS)
    first = decoder.process_id
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(CapacityError, match=r"no answer after 0\.2 s"):
        decoder.decode(encoded(), ImageLimits(decode_timeout_s=0.2))
    assert decoder.process_id is None
    decoder.decode(encoded("BMP"), LIMITS)
    assert decoder.process_id is not None


def test_a_picture_that_takes_too_much_cpu_time_is_refused_and_the_text_names_the_limit(decoder):
    limits = ImageLimits(decode_cpu_s=0.1, decode_timeout_s=PATIENCE_S)
    with pytest.raises(ImageError, match=r"more than the 0\.1 s of CPU time.*scale it down"):
        decoder.decode(build_slow_bmp(), limits)
    assert decoder.process_id is None
    for _ in range(20):  # what others have used up is no fault of these
        decoder.decode(encoded(size=(300, 300)), limits)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="bounds another process")
def test_a_picture_that_takes_too_much_memory_is_refused_and_the_text_names_the_limit(decoder):
    decoder.decode(encoded(), LIMITS)
    pages = int(Path(f"/proc/{decoder.process_id}/statm").read_text().split()[0])
    for mib in (8, 24):  # one has no room for the data, the other none for the pixels
        decoder.decode(encoded(), LIMITS)
        bound = pages * resource.getpagesize() + mib * 2**20
        resource.prlimit(decoder.process_id, resource.RLIMIT_AS, (bound, bound))
        with pytest.raises(ImageTooLargeError, match=r"50000000 pixels allowed.*Scale it down"):
            decoder.decode(encoded("BMP", (2000, 2000)), LIMITS)


@pytest.mark.parametrize("is_one", [True, False])
@pytest.mark.parametrize("kind", [b"\xfe", b"\xff"])
def test_a_gif_with_more_metadata_than_a_picture_needs_is_refused_before_pillow_has_copied_it(is_one, kind, decoder):
    whole = encoded("GIF")
    start = whole.index(b",")

    def decode_with(num_blocks: int) -> tuple[int, int]:
        block = b"\xff" + b"x" * 255
        metadata = b"!" + kind + block * num_blocks + b"\0" if is_one else (b"!" + kind + block + b"\0") * num_blocks
        return decoder.decode(whole[:start] + metadata + whole[start:], LIMITS)[:2]

    assert decode_with(1000) == (4, 2)
    worker = decoder.process_id
    for num_blocks in (2100, 60_000):
        with pytest.raises(ImageError, match=r"2048 blocks of comments and other metadata.*without them"):
            decode_with(num_blocks)
    assert decoder.process_id == worker


@needs_proc
def test_a_picture_whose_worker_is_killed_from_outside_is_decoded_by_another(decoder):
    decoder.decode(encoded(), LIMITS)
    first = decoder.process_id
    os.kill(first, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        decoded = threads.submit(decoder.decode, encoded("BMP"), ImageLimits(decode_timeout_s=PATIENCE_S))
        wait_until_unread(first)
        os.kill(first, signal.SIGKILL)
        assert decoded.result(PATIENCE_S)[:2] == (4, 2)
    assert decoder.process_id not in (None, first)


@needs_proc
def test_a_picture_whose_workers_are_killed_twice_is_told_to_come_back(decoder):
    decoder.decode(encoded(), LIMITS)
    with ThreadPoolExecutor(1) as threads:
        slow = build_slow_bmp()
        decoded = threads.submit(decoder.decode, slow, ImageLimits(decode_cpu_s=PATIENCE_S))
        killed = set[int]()
        deadline = time.monotonic() + PATIENCE_S
        while not decoded.done():
            assert time.monotonic() < deadline
            process_id = decoder.process_id
            if process_id is not None and process_id not in killed and has_read(process_id, len(slow)):
                os.kill(process_id, signal.SIGKILL)
                killed.add(process_id)
        with pytest.raises(CapacityError, match="ended from outside"):
            decoded.result()
    assert len(killed) == 2


@needs_proc
def test_a_picture_that_is_decoded_at_close_is_given_to_no_second_worker(decoder):
    decoder.decode(encoded(), LIMITS)
    first = decoder.process_id
    os.kill(first, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        decoded = threads.submit(decoder.decode, encoded("BMP"), ImageLimits(decode_timeout_s=PATIENCE_S))
        wait_until_unread(first)
        decoder.close()
        with pytest.raises(CapacityError, match="ended from outside"):
            decoded.result(PATIENCE_S)
    assert decoder.process_id is None


def decode_in_a_thread(decoder: ImageDecoder) -> None:
    """Fail, rather than hang, where no picture can be decoded any more."""
    thread = threading.Thread(target=decoder.decode, args=(encoded("BMP"), LIMITS), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert decoder.process_id is not None


def is_interrupted_after(number: int, decode) -> bool:
    """Run `decode`, interrupting the decoder after its `number`-th call of a built-in."""
    seen = 0

    def interrupt(frame, event, _):
        nonlocal seen
        if event == "c_return" and frame.f_code.co_filename in (decoder_module.__file__, decoder_worker.__file__):
            seen += 1
            if seen == number:
                raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        decode()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.parametrize("is_warm", [True, False])
def test_an_interrupt_anywhere_leaves_a_decoder_that_decodes(is_warm, decoder):
    number = 1
    while True:
        if is_warm:
            decoder.decode(encoded("BMP"), LIMITS)
        else:
            decoder.close()
        was_interrupted = is_interrupted_after(number, lambda: decoder.decode(encoded("BMP", (9, 9)), LIMITS))
        decode_in_a_thread(decoder)
        if not was_interrupted:
            break
        number += 1
    assert number > 5


@pytest.mark.parametrize("step", ["poll", "kill", "wait"])
def test_an_interrupt_of_the_cleaning_up_leaves_a_decoder_that_decodes(step, decoder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    decoder.decode(encoded("BMP"), LIMITS)

    def interrupt_reading(frame, event, _):
        if event == "call" and frame.f_code is read_exactly.__code__:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(subprocess.Popen, step, interrupt)
        sys.setprofile(interrupt_reading)
        try:
            with pytest.raises(KeyboardInterrupt):
                decoder.decode(encoded("BMP"), LIMITS)
        finally:
            sys.setprofile(None)
    decode_in_a_thread(decoder)


@pytest.fixture
def interpreter(tmp_path, monkeypatch):
    """Make workers start as a shell script, which has `$PYTHON` for the real thing."""

    def set_interpreter(script: str) -> None:
        (tmp_path / "python").write_text(f"#!/bin/sh\nPYTHON='{python}'\n{script}\n")
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    python = sys.executable
    return set_interpreter


def test_a_worker_that_ends_at_once_is_started_once_more(tmp_path, decoder, interpreter):
    interpreter(f'cd \'{tmp_path}\' && mkdir started && exit 1\nexec "$PYTHON" "$@"')
    assert decoder.decode(encoded("BMP"), LIMITS)[:2] == (4, 2)
    assert (tmp_path / "started").is_dir()


@pytest.mark.parametrize("script", ["exit 0", None])
def test_where_no_worker_can_start_the_picture_is_not_blamed(script, decoder, interpreter, monkeypatch):
    if script is None:
        monkeypatch.setattr(sys, "executable", "no/such/python")
    else:
        interpreter(script)
    with pytest.raises(CapacityError, match="No decoder process could be started"):
        decoder.decode(encoded("BMP"), LIMITS)


@needs_proc
def test_no_secret_of_the_environment_reaches_a_worker(decoder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    decoder.decode(encoded("BMP"), LIMITS)
    process_id = decoder.process_id
    names = {entry.partition(b"=")[0] for entry in Path(f"/proc/{process_id}/environ").read_bytes().split(b"\0")}
    assert {b"PATH", b"PYTHONPATH", b"LC_ALL"} <= names
    assert not {name for name in names if re.search(b"TOKEN|KEY|SECRET|PASS|^HF_|^TILEWISE", name)}


def test_a_worker_is_recycled_after_its_share_of_pictures():
    decoder = ImageDecoder(recycle_after=2)
    seen = []
    for _ in range(5):
        decoder.decode(encoded("BMP"), LIMITS)
        seen.append(decoder.process_id)
    assert [seen.count(process_id) for process_id in dict.fromkeys(seen)] == [2, 2, 1]
    decoder.close()


def test_threads_share_the_worker_and_get_their_own_picture(decoder):
    results = {}
    sizes = [(width, 3) for width in range(1, 25)]

    def work(size: tuple[int, int]) -> None:
        results[size] = decoder.decode(encoded("BMP", size), LIMITS)[:2]

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {size: size for size in sizes}


@needs_proc
def test_a_worker_is_bound_in_memory_cpu_time_and_core_files(decoder):
    decoder.decode(encoded("BMP"), ImageLimits(max_pixels=1_000_000))
    process_id = decoder.process_id
    soft = {}
    for line in Path(f"/proc/{process_id}/limits").read_text().splitlines()[1:]:
        soft[line[:26].strip()] = line[26:].split()[0]
    assert int(soft["Max address space"]) == 512 * 2**20 + 24_000_000
    assert 3 <= int(soft["Max cpu time"]) <= 8
    assert soft["Max core file size"] == "0"


def test_the_worker_imports_neither_torch_nor_numpy():
    command = [sys.executable, "-X", "importtime", "-m", "tilewise.inputs.media.decoder_worker"]
    done = run_command(command, stdin=subprocess.DEVNULL, check=True, env=ENVIRONMENT)
    assert "WebPImagePlugin" in done.stderr
    assert not {"torch", "numpy"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def write_script(tmp_path: Path, text: str) -> list[str | Path]:
    """The command that runs it with a picture."""
    (tmp_path / "a.bmp").write_bytes(encoded("BMP"))
    (tmp_path / "script.py").write_text(text)
    return [sys.executable, tmp_path / "script.py", tmp_path / "a.bmp"]


def test_a_script_without_main_guard_runs_once_even_where_a_foreign_pil_lies_about(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "PIL.py").write_text("raise RuntimeError")
    text = "import sys\nfrom tilewise.vl import load_image\nprint('once')\nprint(load_image(sys.argv[1]).size)\n"
    done = run_command(write_script(tmp_path, text), cwd=tmp_path / "elsewhere", env=ENVIRONMENT)
    assert (done.stdout, done.stderr, done.returncode) == ("once\n(4, 2)\n", "", 0)


def is_running(process_id: str) -> bool:
    """Whether there is such a process, other than one that nobody has waited for yet."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "Z (zombie)" not in status


@needs_proc
@pytest.mark.parametrize("ending", ["", "os.kill(os.getpid(), 9)", "os._exit(0)", "raise SystemExit(3)"])
def test_no_worker_outlives_its_parent_however_that_ends(ending, tmp_path):
    text = (
        "import os, sys\n"
        "from tilewise.inputs.media.decoder_pool import SHARED_DECODERS\n"
        "from tilewise.vl import load_image\n"
        f"load_image(sys.argv[1])\nprint(*SHARED_DECODERS.process_ids, flush=True)\n{ending}\n"
    )
    with start_process(write_script(tmp_path, text), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as script:
        assert script.stdout is not None
        worker = script.stdout.readline().strip()
        script.wait(PATIENCE_S)
        assert worker.isdecimal()
        deadline = time.monotonic() + PATIENCE_S
        while is_running(worker):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_ctrl_c_does_not_reach_the_worker(decoder):
    decoder.decode(encoded("BMP"), LIMITS)
    worker = decoder.process_id
    os.kill(worker, signal.SIGINT)
    decoder.decode(encoded("BMP"), LIMITS)
    assert decoder.process_id == worker


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_a_picture_is_decoded_gets_a_worker_of_its_own(tmp_path):
    text = (
        "import os, signal, sys, threading\nfrom tilewise.inputs.media.decoder_pool import SHARED_DECODERS\n"
        "from tilewise.vl import load_image\n"
        "load_image(sys.argv[1])\n[worker] = SHARED_DECODERS.process_ids\n"
        "os.kill(worker, signal.SIGSTOP)\n"
        "thread = threading.Thread(target=load_image, args=(sys.argv[1],))\nthread.start()\n"
        "while not SHARED_DECODERS.num_decoding:\n    pass\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(200)\n"
        "    load_image(sys.argv[1])\n"
        "    [own] = SHARED_DECODERS.process_ids\n"
        "    os._exit(7 if own != worker else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "os.kill(worker, signal.SIGCONT)\nthread.join()\n"
        "load_image(sys.argv[1])\nassert SHARED_DECODERS.process_ids == [worker]\nprint('ok')\n"
    )
    done = run_command(write_script(tmp_path, text), env=ENVIRONMENT)
    assert done.stdout == "ok\n", done.stderr
