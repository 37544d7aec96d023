"""POST /v1/completions."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tilewise.inputs.conversation import parse_prompt
from tilewise.serving.openai.schema.base import No, Text
from tilewise.serving.openai.schema.sampling import Sampling
from tilewise.types import MAX_TOP_LOGPROBS, GenerationConfig


class CompletionRequest(Sampling):
    """POST /v1/completions: text goes on from text, without the chat template."""

    is_raw: ClassVar[bool] = True
    api_names: ClassVar[dict[str, str]] = {**Sampling.api_names, "messages": "prompt"}

    prompt: Text | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: No = False
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None

    def model_post_init(self, _: Any, /) -> None:
        """The prompt is the one message that the raw template takes."""
        self._messages = parse_prompt(self.prompt if isinstance(self.prompt, str) else self.prompt[0])

    def generation(self, most_tokens: int, **more: Any) -> GenerationConfig:
        """See `Sampling.generation`."""
        return super().generation(most_tokens, logprobs=self.logprobs, **more)
