"""The norms that some language models put on every head of the queries and keys, before the rotation."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Root-mean-square norms over a head's own values, one weight for all query heads and one for all key heads.

    Shapes: q_weight, k_weight: (D,)
    """

    q_weight: Tensor
    k_weight: Tensor
    eps: float
