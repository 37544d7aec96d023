"""The language models of the family, one file each: how a checkpoint names its tensors, and where each belongs.

Here: rows of data over the shared layers; `FAMILIES` has them by the names that `checkpoint.hf_config` gives.
Not here: computation (`model.decoder`), config.json (`checkpoint.hf_config`).
"""

from tilewise.model.families.family import Family
from tilewise.model.families.internlm2 import INTERNLM2
from tilewise.model.families.qwen2 import QWEN2
from tilewise.model.families.qwen3 import QWEN3

__all__ = ["FAMILIES", "Family"]

FAMILIES = {"internlm2": INTERNLM2, "qwen2": QWEN2, "qwen3": QWEN3}
