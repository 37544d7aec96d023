"""From encoded bytes or any Pillow image to 8-bit RGB, upright and opaque.

Pure functions over Pillow: `decode` is for hostile bytes and runs in a decoder process; `to_rgb` is shared with
pictures that callers made themselves. Sizes are checked on the header, before pixels are allocated.
"""

import io
import warnings
from contextlib import suppress

from PIL import GifImagePlugin, Image

from tilewise.errors import ImageError, ImageTooLargeError
from tilewise.inputs.media.policy import ImageLimits

ACCEPTED = "JPEG, PNG, WEBP, GIF and BMP"
_ORIENTATION_TAG = 0x0112
_MAX_GIF_BLOCKS = 2048
# What turns a picture of orientation 2, 3, ... upright.
_TURN_NAMES = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_TURNS = {orientation: Image.Transpose[name] for orientation, name in enumerate(_TURN_NAMES, start=2)}
_BEGINNINGS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"BM": "BMP"}
_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_EIGHT_BIT_MODES = frozenset({"1", "L", "P", "LA", "La", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"})


class _BoundedGif(GifImagePlugin.GifImageFile):
    """A GIF with few blocks of metadata, since Pillow copies all it has of a comment at each block of 255 bytes.

    Counted where Pillow reads them: a check of ours before it could be led to read the file in another way.
    PERF: 15 MB in one comment took more than 12 s of CPU time, 2048 blocks take 0.03 (Xeon, Pillow 12.3, 2026-11-30).
    """

    num_blocks = 0

    def data(self) -> bytes | None:
        self.num_blocks += 1
        if self.num_blocks > _MAX_GIF_BLOCKS:
            raise ImageError(
                f"The GIF has more than {_MAX_GIF_BLOCKS} blocks of comments and other metadata before its first "
                "frame. Save it again without them."
            )
        return super().data()


def sniff_format(data: bytes | bytearray) -> str:
    """Return Pillow's name of the format that the first bytes announce.

    Raises:
        ImageError: none of the accepted five.
    """
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    for beginning, name in _BEGINNINGS.items():
        if data.startswith(beginning):
            return name
    raise ImageError(f"The data is not a picture in an accepted format; {ACCEPTED} are accepted.")


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Hold a picture's size to the limits.

    Raises:
        ImageTooLargeError: too many pixels, too long a side, or too thin.
        ImageError: a side of zero.
    """
    if width < 1 or height < 1:
        raise ImageError(f"The picture is {width}x{height}; each side must have at least 1 pixel.")
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise ImageTooLargeError(
            f"The picture is {width}x{height}; at most {limits.max_pixels} pixels and {limits.max_side} "
            "on a side are allowed. Scale it down."
        )
    is_thin = max(width, height) > limits.max_aspect_ratio * min(width, height)
    if is_thin and width * height > limits.aspect_free_pixels:
        raise ImageTooLargeError(
            f"The picture is {width}x{height}; above {limits.aspect_free_pixels} pixels no side may be more than "
            f"{limits.max_aspect_ratio:g} times the other. Crop it."
        )


def decode(data: bytes | bytearray, limits: ImageLimits) -> Image.Image:
    """Decode the first frame of a picture in an accepted format.

    Not for use in a process that matters: the decoders below are C code, and `data` may be hostile.

    Raises:
        ImageTooLargeError: its size is outside `limits`, or its decoding needs more memory than there is.
        ImageError: anything else that is wrong with it.
    """
    format_name = sniff_format(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if format_name == "WEBP":
                check_size(*_webp_size(data), limits)
            # NOTE: Image.open's own check of the size would come before ours, and its error does not tell the size
            open_image = _BoundedGif if format_name == "GIF" else Image.OPEN[format_name][0]
            return to_rgb(open_image(io.BytesIO(data), ""), limits)
    except ImageError:
        raise
    except (MemoryError, Image.DecompressionBombError):
        raise ImageTooLargeError(
            f"The picture has, or takes the memory of, more than the {limits.max_pixels} pixels allowed. Scale it down."
        ) from None
    except Exception:  # Pillow's plugins raise whatever a malformed field happens to trip
        raise ImageError(f"The {format_name} data is damaged or incomplete. Save the picture again.") from None


def _webp_size(data: bytes | bytearray) -> tuple[int, int]:
    """Read the canvas size: Pillow before 13 allocates the canvas on opening, ahead of any check of ours.

    Source: RFC 9649, sections 2.5-2.7.
    """
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def to_rgb(image: Image.Image, limits: ImageLimits) -> Image.Image:
    """Return 8-bit RGB: turned as its EXIF says, transparency laid on white, 16 bits scaled to 8.

    `image` keeps its pixels, and is itself the result where nothing is to be done.

    Numerics: v / 255 * alpha on white is rounded to nearest; 16-bit samples keep their upper 8 bits, as Pillow
        does with 16-bit colour.
        QUIRK: the reference's `convert('RGB')` drops alpha and clips 16-bit greys to white.

    Raises:
        ImageTooLargeError: the size is outside `limits`.
        ImageError: the mode has no defined 8-bit meaning.
    """
    check_size(*image.size, limits)
    if image.mode not in _EIGHT_BIT_MODES | _SIXTEEN_BIT_MODES:
        raise ImageError(f"A picture of mode {image.mode!r} has no defined range; convert it to 'RGB' first.")
    image.load()
    turn = _TURNS.get(_read_orientation(image))
    flat = _flatten(image)
    if turn is None:
        return flat
    upright = flat.transpose(turn)
    upright.info = {}  # NOTE: the EXIF in there would turn the picture once more
    return upright


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; damaged EXIF counts as none, since it says nothing about the pixels."""
    with suppress(Exception):
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    return 1


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        return _flatten_grey16(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("LA") if image.mode == "La" else image  # Pillow has no way from La to RGBA
    layer = layer if layer.mode == "RGBA" else layer.convert("RGBA")
    if layer.getchannel("A").getextrema() == (255, 255):  # PERF: as most screenshots are; a third less than pasting
        flat = layer.convert("RGB")
        flat.info = {}  # what it says of transparency is no longer so
        return flat
    white = Image.new("RGB", image.size, "white")
    white.paste(layer, mask=layer)
    return white


def _flatten_grey16(image: Image.Image) -> Image.Image:
    wide = image.convert("I")
    grey = wide.point([value >> 8 for value in range(1 << 16)], "L")
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.paste(255, mask=wide.point([255 * (value == clear) for value in range(1 << 16)], "L"))
    return grey.convert("RGB")
