"""The two ends of a language model: ids to vectors, and vectors to logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilewise.kernels import linear
from tilewise.layers.slot import Layer, Slot, parameter, whole

# A head whose rows are no multiple of 16 costs 1.1 ms instead of 0.41 at batch 8 (92,553 x 6,144, H100).
HEAD_ROW_MULTIPLE = 128


class TokenEmbedding(Layer):
    """One row a token id."""

    def __init__(self, vocab_size: int, width: int, dtype: torch.dtype, tied: "Head | None" = None) -> None:
        """Create the table (vocab_size, width), or use that of a `tied` head, padding included."""
        super().__init__()
        self.vocab_size = vocab_size
        self.weight = parameter(vocab_size, width, dtype=dtype) if tied is None else tied.weight

    def forward(self, token_ids: Tensor) -> Tensor:
        """(T,) -> (T, width)."""
        return F.embedding(token_ids, self.weight)

    def slot(self, parameter: str, piece: str | None = None) -> Slot:
        """Return the place of the weight without a head's padding."""
        return whole(getattr(self, parameter)[: self.vocab_size])


class Head(Layer):
    """Logits in fp32, of ids below `num_logits` alone; rows are padded for the matrix units."""

    def __init__(self, vocab_size: int, width: int, dtype: torch.dtype, num_logits: int | None = None) -> None:
        """Create the padded weight; what its extra rows hold is never seen."""
        super().__init__()
        self.vocab_size = vocab_size
        self.num_logits = vocab_size if num_logits is None else num_logits
        rows = -(-vocab_size // HEAD_ROW_MULTIPLE) * HEAD_ROW_MULTIPLE
        self.weight = nn.Parameter(torch.zeros(rows, width, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, num_logits) fp32."""
        return linear(x, self.weight)[:, : self.num_logits].float()

    def slot(self, parameter: str, piece: str | None = None) -> Slot:
        """Return the place of the weight without its padding."""
        return whole(getattr(self, parameter)[: self.vocab_size])
