"""Row 6: pictures that are small as files and huge as pixels."""

import io
import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.messages import mentions
from tests.processes import run_command
from tilewise.errors import ImageTooLargeError
from tilewise.inputs.media.policy import ImageLimits, ImagePolicy
from tilewise.inputs.media.sources import load_image

FORMATS = ["PNG", "GIF", "BMP", "JPEG", "WEBP"]
HUGE = {
    "PNG": (65500, 65500),
    "GIF": (65500, 65500),
    "BMP": (65500, 65500),
    "JPEG": (65500, 65500),
    "WEBP": (16383, 16383),
}


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def honest_png(width: int, height: int) -> bytes:
    """A whole black one-bit PNG of that size."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows_at_once = max(1, (1 << 20) // len(row))
    body = b"".join(packer.compress(row * min(rows_at_once, height - top)) for top in range(0, height, rows_at_once))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body + packer.flush()) + chunk(b"IEND", b"")


def claiming(format_name: str, width: int, height: int) -> bytes:
    """A small picture whose header claims another size."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format_name)
    data = bytearray(buffer.getvalue())
    if format_name == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif format_name == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif format_name == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif format_name == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", height, width)
    else:
        data[26:30] = struct.pack("<HH", width, height)
    return bytes(data)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_header_that_claims_too_many_pixels_is_refused_as_too_large(format_name):
    for width, height in (HUGE[format_name], (13000, 13000)):
        with pytest.raises(ImageTooLargeError, match=mentions(f"{width}x{height}", 50000000)):
            load_image(claiming(format_name, width, height))


@pytest.mark.parametrize("size", [(13000, 13000), (65500, 65500)])
def test_a_gif_whose_frame_is_larger_than_its_screen_or_must_be_disposed_of_is_refused_unallocated(size):
    buffer = io.BytesIO()
    frames = [Image.new("P", (8, 8), colour) for colour in (1, 2)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], disposal=2)
    data = bytearray(buffer.getvalue())
    frame = data.index(b",\0\0\0\0\x08\0\x08\0")
    data[frame + 5 : frame + 9] = struct.pack("<HH", *size)
    for screen in ((8, 8), size):
        data[6:10] = struct.pack("<HH", *screen)
        with pytest.raises(ImageTooLargeError, match="50000000 pixels"):
            load_image(bytes(data))


@pytest.mark.parametrize(
    ("size", "is_fine"),
    [
        ((10, 1000), True), ((10, 1001), False), ((100, 100), True), ((1, 200), True), ((1, 201), True),
        ((3, 900), False), ((1001, 2), False), ((401, 2), True), ((602, 3), False),
    ],
)  # fmt: skip
def test_side_pixels_and_aspect_have_sharp_edges(size, is_fine):
    limits = ImageLimits(max_side=1000, max_pixels=10_000, max_aspect_ratio=200, aspect_free_pixels=1000)
    image = Image.new("1", size)
    for source in (image, honest_png(*size)):
        if is_fine:
            assert load_image(source, ImagePolicy(limits=limits)).size == size
        else:
            with pytest.raises(ImageTooLargeError):
                load_image(source, ImagePolicy(limits=limits))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_bombs_cost_this_process_and_its_worker_less_than_300_mb(tmp_path):
    bombs = {
        "13000x13000.png": honest_png(13000, 13000),
        "1x100000000.png": claiming("PNG", 1, 100_000_000),
        **{f"65500.{name}": claiming(name, *HUGE[name]) for name in FORMATS},
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    script = tmp_path / "script.py"
    script.write_text(
        "import re, sys\n"
        "from pathlib import Path\n"
        "from tilewise.errors import ImageTooLargeError\n"
        "from tilewise.inputs.media.decoder_pool import SHARED_DECODERS\n"
        "from tilewise.vl import load_image\n"
        "def peak_kb():\n"
        "    pids = ('self', *SHARED_DECODERS.process_ids)\n"
        "    texts = [Path(f'/proc/{pid}/status').read_text() for pid in pids]\n"
        "    return sum(int(re.search(r'VmHWM:\\s+(\\d+) kB', text)[1]) for text in texts)\n"
        "load_image(sys.argv[1])\n"
        "before = peak_kb()\n"
        "refused = 0\n"
        "for bomb in sys.argv[2:]:\n"
        "    try:\n"
        "        load_image(bomb)\n"
        "    except ImageTooLargeError:\n"
        "        refused += 1\n"
        "print(refused, peak_kb() - before)\n"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "small.bmp")
    files = [str(tmp_path / name) for name in ("small.bmp", *bombs)]
    done = run_command([sys.executable, script, *files], check=True, env={"PYTHONPATH": package_root()})
    refused, growth_kb = map(int, done.stdout.split())
    assert refused == len(bombs)
    assert growth_kb < 300_000


def package_root() -> str:
    import tilewise

    return str(Path(tilewise.__file__).parents[1])
