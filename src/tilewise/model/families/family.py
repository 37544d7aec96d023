"""What a language model says of itself: how its checkpoint names its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """How one language model names its tensors: name -> (module, piece or None).

    Each layout puts a beginning of its own before the name. `ends` are those outside of the layers; a layer's are in
    `layer`, below `layers` and its number.
    """

    ends: Mapping[str, str]
    layers: str
    layer: Mapping[str, tuple[str, str | None]]
