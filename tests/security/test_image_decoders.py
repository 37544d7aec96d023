"""Row 7: decoding happens elsewhere, and that place may fail without harm."""

import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

import tilewise
from tilewise.errors import ImageError
from tilewise.inputs.decoder import DecoderPool
from tilewise.inputs.policy import ImageLimits

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


@pytest.fixture
def pool():
    pool = DecoderPool(recycle_after=10**9)
    yield pool
    pool.close()
    assert not pool.process_ids


def damaged(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed[: chance.randrange(len(changed))] if chance.random() < 0.1 else changed)


def decode_damaged(pool: DecoderPool, format_name: str, count: int) -> int:
    original, chance = encoded(format_name, (32, 24)), random.Random(f"{format_name} {count}")
    pool.decode(original, LIMITS)
    workers, refused = pool.process_ids, 0
    for _ in range(count):
        try:
            width, height, pixels = pool.decode(damaged(original, chance), LIMITS)
            assert len(pixels) == width * height * 3
        except ImageError:
            refused += 1
    assert pool.process_ids == workers
    return refused


@pytest.mark.parametrize("format_name", FORMATS)
def test_bit_flips_give_pictures_or_image_errors_and_the_worker_survives(format_name, pool):
    assert decode_damaged(pool, format_name, 400) > 0


@pytest.mark.slow
@pytest.mark.parametrize("format_name", FORMATS)
def test_ten_thousand_bit_flips_give_pictures_or_image_errors_and_the_worker_survives(format_name, pool):
    assert decode_damaged(pool, format_name, 2000) > 0


def test_no_process_runs_before_the_first_picture_nor_after_close():
    pool = DecoderPool()
    assert not pool.process_ids
    pool.decode(encoded(), LIMITS)
    (process_id,) = pool.process_ids
    pool.close()
    assert not pool.process_ids
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)
    assert pool.decode(encoded("BMP"), LIMITS)[:2] == (4, 2)
    pool.close()


def test_a_killed_worker_is_replaced(pool):
    pool.decode(encoded(), LIMITS)
    (first,) = pool.process_ids
    os.kill(first, signal.SIGKILL)
    while pool.process_ids:
        time.sleep(0.01)
    pool.decode(encoded("BMP"), LIMITS)
    assert first not in pool.process_ids
    assert len(pool.process_ids) == 1


def test_a_worker_that_answers_too_late_is_killed_and_replaced(pool):
    pool.decode(encoded(), LIMITS)
    (first,) = pool.process_ids
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(ImageError, match=r"within 0\.2 s"):
        pool.decode(encoded(), ImageLimits(decode_timeout_s=0.2))
    assert not pool.process_ids
    pool.decode(encoded("BMP"), LIMITS)
    assert len(pool.process_ids) == 1


def test_a_worker_is_recycled_after_its_share_of_pictures():
    pool = DecoderPool(recycle_after=2)
    seen = []
    for _ in range(5):
        pool.decode(encoded("BMP"), LIMITS)
        seen.append(next(iter(pool.process_ids)))
    assert [seen.count(process_id) for process_id in dict.fromkeys(seen)] == [2, 2, 1]
    pool.close()


def test_threads_share_at_most_size_workers_and_get_their_own_picture():
    pool, results = DecoderPool(size=2), {}
    sizes = [(width, 3) for width in range(1, 25)]

    def work(size: tuple[int, int]) -> None:
        results[size] = pool.decode(encoded("BMP", size), LIMITS)[:2]

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {size: size for size in sizes}
    assert len(pool.process_ids) <= 2
    pool.close()


@needs_proc
def test_a_worker_is_bound_in_memory_cpu_time_and_core_files(pool):
    pool.decode(encoded("BMP"), ImageLimits(max_pixels=1_000_000))
    (process_id,) = pool.process_ids
    soft = {}
    for line in Path(f"/proc/{process_id}/limits").read_text().splitlines()[1:]:
        soft[line[:26].strip()] = line[26:].split()[0]
    assert int(soft["Max address space"]) == 512 * 2**20 + 24_000_000
    assert 10 <= int(soft["Max cpu time"]) <= 20
    assert soft["Max core file size"] == "0"


def test_the_worker_imports_neither_torch_nor_numpy():
    command = [sys.executable, "-X", "importtime", "-m", "tilewise.inputs.decoder"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert "WebPImagePlugin" in done.stderr
    assert not {"torch", "numpy"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def run_script(tmp_path: Path, text: str, **options) -> subprocess.CompletedProcess[str]:
    (tmp_path / "a.bmp").write_bytes(encoded("BMP"))
    (tmp_path / "script.py").write_text(text)
    command = [sys.executable, tmp_path / "script.py", tmp_path / "a.bmp"]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, **options)


def test_a_script_without_main_guard_runs_once_even_where_a_foreign_pil_lies_about(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "PIL.py").write_text("raise RuntimeError")
    text = "import sys\nfrom tilewise.vl import load_image\nprint('once')\nprint(load_image(sys.argv[1]).size)\n"
    done = run_script(tmp_path, text, cwd=tmp_path / "elsewhere")
    assert (done.stdout, done.stderr, done.returncode) == ("once\n(4, 2)\n", "", 0)


@needs_proc
@pytest.mark.parametrize("ending", ["", "os.kill(os.getpid(), 9)", "os._exit(0)", "raise SystemExit(3)"])
def test_no_worker_outlives_its_parent_however_that_ends(ending, tmp_path):
    text = (
        "import os, sys\nfrom tilewise.inputs.decoder import SHARED_POOL\nfrom tilewise.vl import load_image\n"
        f"load_image(sys.argv[1])\nprint(*SHARED_POOL.process_ids, flush=True)\n{ending}\n"
    )
    worker = Path("/proc", run_script(tmp_path, text).stdout.strip())
    assert worker.name.isdecimal()
    while worker.exists() and "Z (zombie)" not in (worker / "status").read_text():
        time.sleep(0.01)


def test_ctrl_c_does_not_reach_the_worker(pool):
    pool.decode(encoded("BMP"), LIMITS)
    workers = pool.process_ids
    for process_id in workers:
        os.kill(process_id, signal.SIGINT)
    pool.decode(encoded("BMP"), LIMITS)
    assert pool.process_ids == workers


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_a_picture_is_decoded_gets_a_worker_of_its_own(tmp_path):
    text = (
        "import os, signal, sys, threading\nfrom tilewise.inputs.decoder import SHARED_POOL\n"
        "from tilewise.vl import load_image\n"
        "load_image(sys.argv[1])\nmine = SHARED_POOL.process_ids\nworker, = mine\n"
        "os.kill(worker, signal.SIGSTOP)\n"
        "thread = threading.Thread(target=load_image, args=(sys.argv[1],))\nthread.start()\n"
        "while not SHARED_POOL._idle.empty():\n    pass\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(30)\n"
        "    load_image(sys.argv[1])\n"
        "    os._exit(7 if len(SHARED_POOL.process_ids) == 1 and SHARED_POOL.process_ids != mine else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "os.kill(worker, signal.SIGCONT)\nthread.join()\n"
        "load_image(sys.argv[1])\nassert SHARED_POOL.process_ids == mine\nprint('ok')\n"
    )
    assert run_script(tmp_path, text).stdout == "ok\n"
