"""Counters by which the programs of one launch find out who is the last of those that share a piece of work."""

from functools import cache

import torch
from torch import Tensor


@cache
def create_arrivals(device: torch.device, owner: str, number: int) -> Tensor:
    """Create an `owner`'s counters, (number,) int32; every launch finds all at zero, and leaves them so.

    NOTE: one set a device and owner: its launches follow each other, on one stream or on streams that wait.
    """
    # Copied, not filled: the copy is over when it returns, whichever stream needs the zeros. In a capture it raises.
    del owner
    return torch.zeros(number, dtype=torch.int32).to(device)
