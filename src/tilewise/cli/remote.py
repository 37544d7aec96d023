"""As much of a `Pipeline` as a chat takes, over HTTP."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import Any, cast

from tilewise.client import APIClient
from tilewise.errors import InputError
from tilewise.inputs.conversation import ImagePart, Message, parse_prompt
from tilewise.offline.session import Session
from tilewise.types import FinishReason, GenerationConfig, Response


class RemotePipeline:
    """As much of a `Pipeline` as a chat takes, over HTTP: pictures are loaded here, and answers made there."""

    def __init__(self, client: APIClient) -> None:
        """Ask the server for its model.

        Raises:
            EngineError: no server answers.
        """
        self.client = client
        self._model = client.available_models[0]

    def stream_chat(self, prompt: Any, session: Session, generation: GenerationConfig) -> Generator[Response]:
        """As `Pipeline.stream_chat`, but for the ids, which do not travel."""
        messages = (*session.messages, *parse_prompt(prompt))
        turns = [_to_turn(message) for message in messages]
        options = {"stream_options": {"include_usage": True}, **_to_options(generation)}
        text, reason, usage = "", None, cast(dict[str, int], {})
        try:
            with closing(self.client.chat_completions_v1(self._model, turns, stream=True, **options)) as chunks:
                for chunk in chunks:
                    usage = chunk.get("usage") or usage
                    for choice in chunk["choices"]:
                        reason = choice.get("finish_reason") or reason
                        delta = choice["delta"].get("content") or ""
                        text += delta
                        yield Response(delta, 0, 0, 0, None)
            last = Response("", usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0), 0, reason)
            yield last
        except (GeneratorExit, KeyboardInterrupt):
            if text:
                session.add_turn(prompt, messages, Response(text, 0, 0, 0, FinishReason.ABORT), text)
            raise
        session.add_turn(prompt, messages, replace(last, text=text), text)


def _to_turn(message: Message) -> dict[str, Any]:
    """A message as the API has it."""
    if message.role != "user":
        return {"role": message.role, "content": message.text}
    parts = [
        {"type": "image_url", "image_url": {"url": part.source}}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _to_options(generation: GenerationConfig) -> dict[str, Any]:
    """Settings by the API's names.

    Raises:
        InputError: one that the API does not take.
    """
    for name in ("bad_words", "bad_token_ids"):
        if getattr(generation, name):
            raise InputError(f"{name} cannot be asked of a server; leave it out, or --server.", param=name)
    sampling: dict[str, Any] = {"temperature": 0}
    if generation.do_sample:
        sampling = {name: getattr(generation, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    same = ("repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos", "skip_special_tokens")
    return {
        **sampling,
        **{name: getattr(generation, name) for name in same},
        "max_tokens": generation.max_new_tokens,
        "min_tokens": generation.min_new_tokens,
        "seed": generation.random_seed,
        "stop": list(generation.stop_words),
        "stop_token_ids": list(generation.stop_token_ids),
    }
