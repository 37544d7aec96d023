import numpy as np
import pytest
import torch
from PIL import Image

from tests.kernels import pillow
from tests.kernels.test_resample import draw_pictures
from tilewise.inputs.media.sources import prepare_image
from tilewise.runner.image_cutter import ImageCutter
from tilewise.types import PreparedImage, TilingParameters


def prepare(image: torch.Tensor, columns: int, rows: int, has_thumbnail: bool) -> PreparedImage:
    height, width, _ = image.shape
    pixels = memoryview(image.numpy().tobytes())
    return PreparedImage(width, height, pixels, columns, rows, has_thumbnail, b"0" * 32)


def test_tiles_are_pillows_own() -> None:
    for image, (columns, rows, has_thumbnail, size) in draw_pictures(8):
        tiles = ImageCutter(torch.device("cpu"), size).cut(prepare(image, columns, rows, has_thumbnail))
        assert torch.equal(tiles, pillow.cut(image, columns, rows, has_thumbnail, size))


@pytest.mark.gpu
def test_tiles_on_a_gpu_are_pillows_own_while_another_stream_computes() -> None:
    device = torch.device("cuda", 0)
    busy = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16)
    for image, (columns, rows, has_thumbnail, size) in draw_pictures(40):
        busy @ busy
        tiles = ImageCutter(device, size).cut(prepare(image, columns, rows, has_thumbnail))
        assert torch.equal(tiles.cpu(), pillow.cut(image, columns, rows, has_thumbnail, size))


@pytest.mark.gpu
def test_a_picture_of_many_pieces_is_uploaded_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5000, 7000, 3), dtype=np.uint8)  # 105 MB, seven pieces
    tiling = TilingParameters(tile_size=448, max_tiles=1)
    image = prepare_image(Image.fromarray(pixels), tiling)
    tiles = ImageCutter(torch.device("cuda", 0), 448).cut(image)
    assert torch.equal(tiles.cpu(), pillow.cut(torch.from_numpy(pixels), 1, 1, False, 448))
