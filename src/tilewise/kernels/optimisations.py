"""Optimisations that can be left out one by one, to compare what a step says and costs without them.

What is left out is left out for the whole process. Graphs keep the kernels that they were captured with.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto


class Optimisation(Enum):
    """What a step could do without."""

    SKINNY_PRODUCTS = auto()
    ELEMENTWISE_KERNELS = auto()
    PAGED_ATTENTION = auto()
    CUDNN_ATTENTION = auto()
    DEPENDENT_LAUNCHES = auto()


_left_out: set[Optimisation] = set()


def is_left_out(optimisation: Optimisation) -> bool:
    """Tell whether the caller of `without` does without it."""
    return bool(_left_out) and optimisation in _left_out


@contextmanager
def without(*optimisations: Optimisation) -> Iterator[None]:
    """Leave some out until the end of the block."""
    added = set(optimisations) - _left_out
    _left_out.update(added)
    try:
        yield
    finally:
        _left_out.difference_update(added)
