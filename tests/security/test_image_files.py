"""Rows 5, 7 and 10: which files may be read, which formats opened, and what errors may say."""

import base64
import io
import os
import re

import pytest
from PIL import Image

from tests.messages import mentions
from tilewise.errors import ImageError, InputError
from tilewise.inputs.media.policy import ImageLimits, ImagePolicy
from tilewise.inputs.media.sources import load_image


def encoded(format_name: str, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 3).save(buffer, format_name)
    return buffer.getvalue()


@pytest.fixture
def folders(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(encoded("PNG"))
    (inside / "link.png").symlink_to(outside / "a.png")
    (inside / "folder").symlink_to(outside)
    (inside / "good.png").symlink_to(inside / "a.png")
    return inside, outside


def test_files_in_the_allowed_folder_are_read(folders):
    inside, _ = folders
    policy = ImagePolicy(allowed_local_media_path=str(inside))
    for name in ("a.png", "good.png", "../inside/a.png"):
        assert load_image(f"{inside}/{name}", policy).size == (16, 16)
        assert load_image(f"file://{inside}/{name}", policy).size == (16, 16)


def test_a_link_may_name_the_allowed_folder_itself(folders, tmp_path):
    inside, _ = folders
    (tmp_path / "alias").symlink_to(inside)
    policy = ImagePolicy(allowed_local_media_path=str(tmp_path / "alias"))
    assert load_image(inside / "a.png", policy).size == (16, 16)


@pytest.mark.parametrize(
    "source",
    ["/etc/passwd", "file:///etc/passwd", "file://localhost/etc/passwd", "file:///etc/%70asswd", "../outside/a.png",
     "{inside}/../outside/a.png", "{inside}/link.png", "{inside}/folder/a.png", "file://{inside}/%2e%2e/outside/a.png",
     "{inside}2/a.png", "{outside}/a.png", "/proc/self/environ", "/no/such/file", "http:/etc/passwd", "~/a.png"],
)  # fmt: skip
def test_nothing_outside_the_allowed_folder_is_read_or_told_to_exist(source, folders, monkeypatch):
    inside, outside = folders
    monkeypatch.chdir(inside)
    (inside.parent / "inside2").mkdir()
    (inside.parent / "inside2" / "a.png").write_bytes(encoded("PNG"))
    with_folder = ImagePolicy(allowed_local_media_path=str(inside))
    for policy in (with_folder, ImagePolicy(allowed_local_media_path=None)):
        with pytest.raises(ImageError) as caught:
            load_image(source.format(inside=inside, outside=outside), policy)
        if not source.startswith(("~", "http:")) or policy is not with_folder:
            with pytest.raises(ImageError, match=mentions("URL", "base64")) as missing:
                load_image("/no/such/picture.png", policy)
            assert str(caught.value) == str(missing.value), "it does not tell whether there is a file"


@pytest.mark.parametrize("url", ["file://host/a.png", "file://\\\\host\\a.png", "file:\\\\host\\a.png"])
def test_a_file_url_of_another_machine_is_refused(url):
    with pytest.raises(ImageError, match="this machine"):
        load_image(url)


def test_pipes_devices_and_folders_are_refused_and_nothing_hangs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for source in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(ImageError, match=mentions(source, "file")):
            load_image(source)
    assert not before or len(os.listdir("/proc/self/fd")) == len(before)


OTHER_FORMATS = [
    "TIFF",
    "PPM",
    "TGA",
    "SGI",
    "PCX",
    "DIB",
    "ICO",
    "ICNS",
    "EPS",
    "PDF",
    "DDS",
    "MSP",
    "XBM",
    "SPIDER",
]
OTHER_BYTES = {
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "HTML": b"<!doctype html>",
    "PSD": b"8BPS\0\1",
    "AVIF": b"\0\0\0\x1cftypavif",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "zip": b"PK\3\4",
    "WAV": b"RIFF\0\0\0\0WAVEfmt ",
}


@pytest.mark.parametrize("format_name", OTHER_FORMATS)
def test_formats_that_pillow_could_open_are_refused(format_name):
    mode = {"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(format_name, "RGB")
    with pytest.raises(ImageError, match=mentions("JPEG", "PNG", "WEBP", "GIF", "BMP")):
        load_image(encoded(format_name, mode))


@pytest.mark.parametrize("kind", OTHER_BYTES)
def test_other_bytes_are_refused(kind):
    with pytest.raises(ImageError, match="accepted"):
        load_image(OTHER_BYTES[kind] + bytes(64))


@pytest.mark.parametrize("magic", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBPVP8 "])
@pytest.mark.parametrize("body", ["TIFF", "GIF", "EPS"])
def test_a_false_magic_does_not_open_another_decoder(magic, body):
    with pytest.raises(ImageError, match=r"damaged|pixels"):
        load_image(magic + encoded(body))


def test_messages_hold_no_address_traceback_or_path_that_was_not_given(folders, monkeypatch):
    inside, _ = folders
    monkeypatch.chdir(inside)
    (inside / "text.png").write_text("no picture")
    truncated = encoded("PNG", size=(64, 64))[:80]
    lazy = Image.open(io.BytesIO(truncated))
    sources = [
        "link.png", "missing.png", "text.png", ".", "folder", truncated, b"", b"BM" + bytes(9), lazy, object(), 3,
        "data:x", "data:image/png;base64," + base64.b64encode(truncated).decode(), "http://127.0.0.1:1/", "http://[::1]:1/",
        "http://", "ftp://a/", "file://x/y", "http://a\\b/", Image.new("F", (1, 1)), "x" * 5000, "\0",
    ]  # fmt: skip
    strict = ImagePolicy(limits=ImageLimits(fetch_timeout_s=1), allowed_local_media_path=str(inside))
    for source in sources:
        with pytest.raises(InputError) as caught:
            load_image(source, strict)
        message = str(caught.value)
        assert not re.search(r"0x[0-9a-f]{4,}|Traceback|\.py|Errno|PIL\.|" + re.escape(str(inside.parent)), message)
        assert len(message) < 400
        assert caught.value.__cause__ is None
