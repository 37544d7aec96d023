"""A slot: the place of one checkpoint tensor inside a layer's parameters."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Slot:
    """`shape` is the checkpoint tensor's; `load` takes the whole tensor and keeps this rank's part of it."""

    shape: tuple[int, ...]
    load: Callable[[Tensor], None]


def whole(parameter: Tensor, shape: tuple[int, ...] | None = None) -> Slot:
    """Return the slot of a parameter that is copied as it is, from a tensor of `shape` if not its own."""

    def load(tensor: Tensor) -> None:
        parameter.data.copy_(tensor.reshape(parameter.shape))

    return Slot(tuple(shape or parameter.shape), load)
