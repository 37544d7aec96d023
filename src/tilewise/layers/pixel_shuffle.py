"""Fewer positions, more channels: between tower and projector."""

from torch import Tensor, nn

from tilewise import kernels


class PixelShuffle(nn.Module):
    """Fold each square of neighbouring positions into one; see `kernels.pixel_shuffle`."""

    def __init__(self, side: int, ratio: float, version: str) -> None:
        """`side` is the number of positions along one edge of a tile."""
        super().__init__()
        self.side, self.ratio, self.version = side, ratio, version

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, C) -> (N, P * ratio^2, C / ratio^2)."""
        grid = x.unflatten(1, (self.side, self.side))
        return kernels.pixel_shuffle(grid, self.ratio, self.version).flatten(1, 2)
