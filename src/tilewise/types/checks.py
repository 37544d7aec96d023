"""Checks that the frozen values share: each names the field that it refuses."""

import math
from collections.abc import Iterable
from typing import cast

from tilewise.errors import InputError


def check_range(name: str, value: object, low: float, high: float, *, low_open: bool = False) -> None:
    """Refuse what is no number in [low, high], or with `low_open` in (low, high]."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not low <= number <= high or (low_open and number == low):
        bracket = "(" if low_open else "["
        raise InputError(f"{name} must be a number in {bracket}{low}, {high}], got {value!r:.80}.", param=name)


def check_count(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is no whole number in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name} must be a whole number in [{low}, {high}], got {value!r:.80}.", param=name)


def freeze(name: str, values: object) -> tuple[object, ...]:
    """Return a list, or anything that is iterated like one, as a tuple; None as an empty one."""
    if values is None:
        return ()
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InputError(f"{name} must be a list, got {values!r:.80}.", param=name)
    return tuple(cast(Iterable[object], values))
