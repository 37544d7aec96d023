"""`load_image` and `encode_image_base64` under the import path that users of other engines know."""

import base64
import io

from tilewise.inputs.media.sources import ImageSource, load_image

__all__ = ["encode_image_base64", "load_image"]


def encode_image_base64(image: ImageSource) -> str:
    """Return a picture as base64 of a PNG, ready to follow `data:image/png;base64,`.

    Raises:
        ImageError: the picture could not be loaded.
    """
    buffer = io.BytesIO()
    load_image(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
