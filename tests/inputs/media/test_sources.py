import base64
import dataclasses
import io
import struct
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.messages import mentions
from tilewise import vl
from tilewise.errors import ConfigError, ImageError, ImageTooLargeError, InputError
from tilewise.inputs.media.policy import ImageLimits, ImagePolicy
from tilewise.inputs.media.sources import decode_base64, load_image, prepare_image
from tilewise.types import TilingParameters

TILING = TilingParameters()
ORIENTATION = 0x0112
UNTURNED = {  # what a camera held that way stores, so that turning gives the upright picture again
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded(image: Image.Image, format_name: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_name, **options)
    return buffer.getvalue()


def colours(image: Image.Image) -> list[tuple[int, int, int]]:
    data = image.tobytes()
    return [tuple(data[i : i + 3]) for i in range(0, len(data), 3)]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, depth: int, colour_type: int, row: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + rows + chunk(b"IEND", b"")


def gradient(width: int = 24, height: int = 10) -> Image.Image:
    return Image.frombytes(
        "RGB", (width, height), bytes(v % 256 for y in range(height) for x in range(width) for v in (x * 9, y * 20, 7))
    )


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "WEBP"])
def test_a_lossless_file_keeps_every_pixel(format_name):
    options = {"lossless": True} if format_name == "WEBP" else {}
    assert load_image(encoded(gradient(), format_name, **options)).tobytes() == gradient().tobytes()


def test_path_text_path_bytes_data_url_and_pillow_image_give_the_same_picture(tmp_path):
    data = encoded(gradient())
    file = tmp_path / "图 1.png"
    file.write_bytes(data)
    data_url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (file, str(file), file.as_uri(), data, data_url, gradient(), Image.open(io.BytesIO(data))):
        assert load_image(source).tobytes() == gradient().tobytes()


def test_base64_is_decoded_in_pieces_as_in_one_and_padded_at_its_end_alone():
    for width in range(20, 30):  # files of every length modulo 3
        data = encoded(gradient(width, 9))
        text = base64.b64encode(data).decode()
        assert decode_base64("data:" + text, 5, stride=16) == data
        for broken in (f"{text[:14]}=={text[16:]}", f"{text[:15]}={text[16:]}", f"{text[:20]}%{text[21:]}"):
            with pytest.raises(ValueError, match=r"base64|padding"):
                decode_base64(broken, stride=16)
            with pytest.raises(ImageError, match="base64"):
                load_image("data:image/png;base64," + broken)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_every_exif_orientation_gives_equal_pixels(orientation, format_name):
    stored = gradient() if UNTURNED[orientation] is None else gradient().transpose(UNTURNED[orientation])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = encoded(stored, format_name, exif=exif, **options)
    assert load_image(data).tobytes() == gradient().tobytes()
    in_process = load_image(Image.open(io.BytesIO(data)))
    assert in_process.tobytes() == gradient().tobytes()
    assert load_image(in_process).tobytes() == gradient().tobytes()


def test_jpeg_orientations_give_equal_tiles():
    digests = set()
    for orientation in range(1, 9):
        flat = Image.new("RGB", (64, 32), (200, 30, 60))
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stored = flat if orientation < 5 else flat.transpose(Image.Transpose.TRANSPOSE)
        digests.add(prepare_image(load_image(encoded(stored, "JPEG", exif=exif)), TILING).digest)
    assert len(digests) == 1


def test_damaged_exif_leaves_the_picture_as_stored():
    data = encoded(gradient(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk")
    assert load_image(data).tobytes() == gradient().tobytes()


def paletted(*colours: int, transparency: bytes | int | None = None) -> bytes:
    image = Image.new("P", (3, 1))
    image.putpalette(colours)
    image.putdata([0, 1, 2])
    return encoded(image, **({} if transparency is None else {"transparency": transparency}))


GOLDEN = {
    "RGBA": (
        encoded(Image.frombytes("RGBA", (3, 1), bytes([10, 20, 30, 0, 10, 20, 30, 128, 10, 20, 30, 255]))),
        [(255, 255, 255), (132, 137, 142), (10, 20, 30)],
    ),
    "LA": (encoded(Image.frombytes("LA", (3, 1), bytes([0, 0, 0, 51, 9, 255]))), [(255,) * 3, (204,) * 3, (9,) * 3]),
    "L": (encoded(Image.frombytes("L", (3, 1), bytes([0, 7, 255]))), [(0,) * 3, (7,) * 3, (255,) * 3]),
    "1": (encoded(Image.frombytes("1", (3, 1), b"\xa0")), [(255,) * 3, (0,) * 3, (255,) * 3]),
    "P": (paletted(1, 2, 3, 4, 5, 6, 7, 8, 9), [(1, 2, 3), (4, 5, 6), (7, 8, 9)]),
    "P with one clear index": (
        paletted(1, 2, 3, 4, 5, 6, 7, 8, 9, transparency=1),
        [(1, 2, 3), (255, 255, 255), (7, 8, 9)],
    ),
    "P with alpha bytes": (
        paletted(0, 0, 0, 0, 0, 0, 0, 0, 0, transparency=bytes([255, 51, 0])),
        [(0, 0, 0), (204, 204, 204), (255, 255, 255)],
    ),
    "grey 16": (png(4, 16, 0, struct.pack(">4H", 0, 255, 256, 65535)), [(0,) * 3, (0,) * 3, (1,) * 3, (255,) * 3]),
    "grey 16 with a clear value": (
        png(3, 16, 0, struct.pack(">3H", 512, 513, 0), chunk(b"tRNS", struct.pack(">H", 513))),
        [(2,) * 3, (255,) * 3, (0,) * 3],
    ),
    "colour 16": (png(1, 16, 2, struct.pack(">3H", 511, 512, 65535)), [(1, 2, 255)]),
    "colour with a clear value": (
        png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6]), chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))),
        [(255, 255, 255), (4, 5, 6)],
    ),
    "GIF with a clear index": (
        encoded(Image.open(io.BytesIO(paletted(1, 2, 3, 4, 5, 6, 7, 8, 9))), "GIF", transparency=2),
        [(1, 2, 3), (4, 5, 6), (255, 255, 255)],
    ),
    "first of several frames": (
        encoded(
            Image.new("RGB", (1, 1), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (1, 1), "blue")]
        ),
        [(255, 0, 0)],
    ),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_odd_kinds_of_picture_have_golden_pixels(kind):
    data, expected = GOLDEN[kind]
    image = load_image(data)
    assert image.mode == "RGB"
    assert colours(image) == expected


def test_cmyk_jpeg_keeps_its_colours():
    image = load_image(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100))
    assert all(red < 8 and green > 247 and blue > 247 for red, green, blue in colours(image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "I"])
def test_pillow_images_of_every_eight_and_sixteen_bit_mode_become_rgb(mode):
    assert load_image(Image.new(mode, (5, 3))).mode == "RGB"


def test_a_mode_without_range_is_refused_by_name():
    with pytest.raises(ImageError, match="mode 'F'"):
        load_image(Image.new("F", (2, 2)))


def test_a_pillow_image_keeps_its_pixels_and_its_mode():
    image = Image.new("RGBA", (2, 2), (1, 2, 3, 4))
    load_image(image)
    assert (image.mode, image.getpixel((0, 0))) == ("RGBA", (1, 2, 3, 4))


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (447, 447), (448, 448), (449, 449)])
def test_any_size_of_at_least_one_pixel_is_prepared(size):
    prepared = prepare_image(load_image(encoded(Image.new("RGB", size))), TILING)
    assert (prepared.width, prepared.height) == size
    assert len(prepared.pixels) == size[0] * size[1] * 3
    assert 1 <= prepared.num_tiles <= 13


def test_the_published_picture_size_prepares_to_seven_tiles():
    prepared = prepare_image(Image.new("RGB", (600, 400)), TILING)
    assert (prepared.columns, prepared.rows, prepared.has_thumbnail, prepared.num_tiles) == (3, 2, True, 7)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_an_opaque_picture_with_an_alpha_channel_keeps_its_colours_and_says_nothing_of_transparency(mode):
    colours = gradient(40, 30).convert("L").convert("RGB") if mode in ("LA", "La") else gradient(40, 30)
    opaque = colours.convert("LA" if mode == "La" else "RGBA" if mode == "RGBa" else mode).convert(mode)
    opaque.info["transparency"] = 0
    flat = load_image(opaque)
    assert flat.mode == "RGB"
    assert not flat.has_transparency_data
    white = Image.new("RGB", opaque.size, "white")
    layer = (opaque.convert("LA") if mode == "La" else opaque).convert("RGBA")
    white.paste(layer, mask=layer)
    assert flat.tobytes() == white.tobytes()


def test_equal_bytes_in_another_shape_have_another_digest():
    data = bytes(range(256)) * 53
    wide, tall = (Image.frombytes("RGB", size, data[:13500]) for size in ((150, 30), (30, 150)))
    assert prepare_image(wide, TILING).pixels == prepare_image(tall, TILING).pixels
    assert prepare_image(wide, TILING).digest != prepare_image(tall, TILING).digest


def test_palette_twins_have_other_digests_and_equal_pixels_equal_ones():
    one, other = paletted(1, 2, 3, 4, 5, 6, 7, 8, 9), paletted(9, 8, 7, 6, 5, 4, 3, 2, 1)
    spelled_out = Image.frombytes("RGB", (3, 1), bytes(range(1, 10)))
    first = prepare_image(load_image(one), TILING).digest
    assert first != prepare_image(load_image(other), TILING).digest
    assert first == prepare_image(spelled_out, TILING).digest
    assert len(first) == 32


@pytest.mark.parametrize("change", [{"max_tiles": 6}, {"min_tiles": 2}, {"use_thumbnail": False}, {"tile_size": 224}])
def test_every_tiling_parameter_is_part_of_the_digest(change):
    image = gradient(448, 448)
    assert prepare_image(image, TILING).digest != prepare_image(image, dataclasses.replace(TILING, **change)).digest


@pytest.mark.parametrize(
    "source",
    [b"", b"hello", "data:image/png;base64,%%%", "data:image/png,abc", "data:;base64,", "no/such/picture.png", "a\0b"],
)
def test_what_is_no_picture_is_an_image_error(source):
    with pytest.raises(ImageError):
        load_image(source)


@pytest.mark.parametrize("source", [None, 5, ["a.png"], {"url": "a"}])
def test_a_source_of_another_type_is_refused_by_name(source):
    with pytest.raises(InputError, match=type(source).__name__):
        load_image(source)


def test_a_closed_or_truncated_pillow_file_is_an_image_error():
    data = encoded(gradient(200, 200))
    truncated = Image.open(io.BytesIO(data[: len(data) // 2]))
    closed = Image.open(io.BytesIO(data))
    closed.fp.close()
    for image in (truncated, closed):
        with pytest.raises(ImageError, match="Pillow image"):
            load_image(image)


def test_more_bytes_than_allowed_are_refused_before_decoding(tmp_path):
    policy = ImagePolicy(limits=ImageLimits(max_bytes=100))
    data = b"x" * 101
    (tmp_path / "a").write_bytes(data)
    for source in (data, tmp_path / "a", "data:image/png;base64," + base64.b64encode(data).decode()):
        with pytest.raises(ImageTooLargeError, match="100 bytes"):
            load_image(source, policy)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_bytes": 0}, {"max_pixels": -1}, {"fetch_timeout_s": float("inf")}, {"fetch_timeout_s": float("nan")},
        {"max_bytes": "3"}, {"max_pixels": None}, {"max_side": 2.5}, {"max_side": True}, {"max_request_images": 0},
        {"rate_grace_s": [1]}, {"max_pixels": 10**400},
    ],
)  # fmt: skip
def test_a_bound_that_would_switch_a_limit_off_is_refused(bad):
    with pytest.raises(ConfigError) as caught:
        ImageLimits(**bad)
    assert caught.value.param in bad


@pytest.mark.parametrize("host", ["http://a", "a/b", "a:80", "", "u@a", 5, None])
def test_an_allowed_host_must_be_bare(host):
    with pytest.raises(ConfigError, match="bare hosts"):
        ImagePolicy(allowed_media_hosts=(host,))


@pytest.mark.parametrize("hosts", ["localhost", None, 5])
def test_allowed_hosts_must_be_a_list(hosts):
    with pytest.raises(ConfigError, match=mentions("allowed_media_hosts", repr(hosts), "list")) as refusal:
        ImagePolicy(allowed_media_hosts=hosts)
    assert refusal.value.param == "allowed_media_hosts"
    assert ImagePolicy(allowed_media_hosts=["LocalHost."]).allowed_media_hosts == ("localhost",)


def test_vl_offers_the_two_known_names(tmp_path):
    assert vl.__all__ == sorted(vl.__all__) == ["encode_image_base64", "load_image"]
    file = Path(tmp_path, "a.bmp")
    file.write_bytes(encoded(gradient(), "BMP"))
    text = vl.encode_image_base64(str(file))
    assert vl.load_image("data:image/png;base64," + text).tobytes() == gradient().tobytes()


def test_loading_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(GOLDEN["P with alpha bytes"][0])
        load_image(Image.open(io.BytesIO(GOLDEN["P with alpha bytes"][0])))
