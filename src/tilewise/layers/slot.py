"""A slot: the place of one checkpoint tensor inside a layer's parameters."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Slot:
    """`shape` is the checkpoint tensor's; `load` takes the whole tensor and keeps this rank's part of it."""

    shape: tuple[int, ...]
    load: Callable[[Tensor], None]


def whole(parameter: Tensor) -> Slot:
    """Return the slot of a parameter, or a part of one, that is copied as it is."""

    def load(tensor: Tensor) -> None:
        parameter.data.copy_(tensor)

    return Slot(tuple(parameter.shape), load)


def parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """Create an uninitialised parameter, which no gradient will ever change."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


class Layer(nn.Module):
    """A module that knows where the checkpoint's tensors go."""

    def has(self, parameter: str) -> bool:
        """Tell whether this flavour of the layer has such a parameter."""
        return parameter == "weight" or getattr(self, parameter, None) is not None

    def slot(self, parameter: str, piece: str | None = None) -> Slot:
        """Return the place of a parameter, or of one `piece` of a fused one."""
        return whole(getattr(self, parameter))
