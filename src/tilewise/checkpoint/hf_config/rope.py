"""Rotary positions as language models spell them: `rope_theta` and `rope_scaling`, or `rope_parameters` alone (5.x)."""

from typing import Literal, cast

from tilewise.checkpoint.hf_config.section import Section
from tilewise.config import RopeScaling

_DEFAULT_THETA = 10000.0
_WITHOUT_TYPE = frozenset({"rope_theta", "partial_rotary_factor"})


def read_rope(section: Section) -> tuple[float, RopeScaling | None]:
    """Return the base and the scaling; where both spellings say something `rope_scaling` counts, as in transformers."""
    theta = section.number("rope_theta", _DEFAULT_THETA)
    key = "rope_scaling" if section.get("rope_scaling", None) else "rope_parameters"
    if not section.get(key, None):
        return theta, None
    parameters = section.section(key)
    theta = parameters.number("rope_theta", theta)
    parameters.only("partial_rotary_factor", 1.0)
    kind_key = "type" if parameters.get("rope_type", None) is None else "rope_type"
    if parameters.word(kind_key, None) is None:
        # Also parameters a layer type, which would otherwise count as none.
        if not parameters.given() <= _WITHOUT_TYPE:
            raise section.unsupported(key, "an object with type and factor, or with rope_theta alone")
        return theta, None
    kind = parameters.choice(kind_key, "", ("default", "linear", "dynamic"))
    if kind == "default":
        return theta, None
    factor = parameters.number("factor")
    if factor < 1.0:
        raise parameters.error("factor", "at least 1")
    return theta, RopeScaling(cast(Literal["linear", "dynamic"], kind), factor)
