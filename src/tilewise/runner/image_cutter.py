"""Large pictures are cut here beside the steps: on the host by Pillow, on a GPU on a stream of its own.

In a step, 49 megapixels held up every answer for 55 ms (H200, 2026-11-30), nearly all of it on the host, which pinned
and copied their 147 MB.
"""

import numpy as np
import torch
from torch import Tensor

from tilewise import kernels
from tilewise.kernels import upload
from tilewise.types import PreparedImage

_PIECE_BYTES = 16 << 20


class ImageCutter:
    """Cuts one picture at a time, on a thread that is not the loop's."""

    def __init__(self, device: torch.device, tile_size: int) -> None:
        """Take what uploads go through: memory that is pinned later would hold up the device."""
        self._device = device
        self._tile_size = tile_size
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._pieces = [torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._are_free = [torch.cuda.Event() for _ in self._pieces]

    def cut(self, image: PreparedImage) -> Tensor:
        """All tiles of a picture, which are there when this returns.

        Shapes: (num_tiles, tile_size, tile_size, 3) uint8
        Numerics: as `kernels.cut_tiles`, bit for bit.
        """
        with torch.inference_mode():
            if self._stream is None:
                return self._cut(image, upload(np.frombuffer(image.pixels, np.uint8), self._device))
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                tiles = self._cut(image, self._upload(image))
            self._stream.synchronize()
            return tiles

    def _cut(self, image: PreparedImage, pixels: Tensor) -> Tensor:
        pixels = pixels.view(image.height, image.width, 3)
        return kernels.cut_tiles(pixels, image.columns, image.rows, image.has_thumbnail, self._tile_size)

    def _upload(self, image: PreparedImage) -> Tensor:
        """Copy pixels piece by piece: while one is on its way, the host copies the next one into pinned memory."""
        source = np.frombuffer(image.pixels, np.uint8)
        target = torch.empty(len(source), dtype=torch.uint8, device=self._device)
        for number, start in enumerate(range(0, len(source), _PIECE_BYTES)):
            piece, is_free = self._pieces[number % 2], self._are_free[number % 2]
            part = source[start : start + _PIECE_BYTES]
            is_free.synchronize()
            np.copyto(piece.numpy()[: len(part)], part)
            target[start : start + len(part)].copy_(piece[: len(part)], non_blocking=True)
            is_free.record()
        return target
