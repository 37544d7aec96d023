"""The data that crosses rooms: generation settings, requests, step outputs, responses.

Here: values that are frozen, plain and valid once they construct; each checks its own fields and names the offender.
Not here: behaviour, files, sockets, torch.
"""

from tilewise.types.generation import (
    MAX_CHOICES,
    MAX_STOP_WORDS,
    MAX_TOP_LOGPROBS,
    MAX_WORD_LENGTH,
    GenerationConfig,
)
from tilewise.types.request import ImageSpan, PreparedImage, Request, TilingParameters
from tilewise.types.response import Box, FinishReason, Response, StepOutput, TokenLogprob, Usage

__all__ = [
    "MAX_CHOICES",
    "MAX_STOP_WORDS",
    "MAX_TOP_LOGPROBS",
    "MAX_WORD_LENGTH",
    "Box",
    "FinishReason",
    "GenerationConfig",
    "ImageSpan",
    "PreparedImage",
    "Request",
    "Response",
    "StepOutput",
    "TilingParameters",
    "TokenLogprob",
    "Usage",
]
