"""What a language model says of itself: how its checkpoint names its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """How one language model names its tensors: official name -> (module, piece or None)."""

    ends: Mapping[str, str]
    layer: Mapping[str, tuple[str, str | None]]
