"""`pipeline(model)`: ask a model from Python, in the call forms that LMDeploy's users know.

A `Pipeline` owns an engine and whatever turns prompts into its requests. It never imports torch itself. Prompts of
one call run together; one that fails ends the call, and the others are aborted.
"""

import logging
import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from typing import Any, cast

from tilewise.answers import Answer, Job, create_jobs, follow
from tilewise.config import ChatTemplateConfig, EngineConfig, read_log_level
from tilewise.engine.launch import Engine, find_checkpoint, launch_engine
from tilewise.errors import ConfigError, EngineError, InputError, TilewiseError
from tilewise.inputs.conversation import Message, is_message_list, parse_prompt
from tilewise.inputs.request_builder import RequestBuilder, create_builder
from tilewise.offline.progress import show_progress
from tilewise.offline.session import Session
from tilewise.types import FinishReason, GenerationConfig, Response

Generations = GenerationConfig | Sequence[GenerationConfig] | None
Groups = list[list[Answer]]


def pipeline(
    model_path: str | os.PathLike[str] | None = None,
    model_name: str | None = None,
    backend_config: EngineConfig | None = None,
    chat_template_config: ChatTemplateConfig | None = None,
    log_level: str = "WARNING",
    *,
    max_dynamic_patch: int | None = None,
    min_dynamic_patch: int | None = None,
    allowed_media_hosts: Sequence[str] = (),
    **kwargs: Any,
) -> "Pipeline":
    """Load a model and return a `Pipeline` that answers with it.

    `model_path` is a folder, a hub id, or nothing for the embedded model. `model_name` names a prompt profile, as
    `chat_template_config.model_name` does. `kwargs` are fields of `EngineConfig`, in place of `backend_config`.
    `max_dynamic_patch` and `min_dynamic_patch` bound the tiles of pictures that do not say their own, in place of
    the checkpoint's. `allowed_media_hosts` may be fetched from though they are not on the public internet.

    Raises:
        ConfigError: a setting is unknown, given twice, or not available.
        CheckpointError: the model cannot be found or served.
    """
    _check_type("model_path", model_path, (str, os.PathLike), "a folder, a hub id, or None for the embedded model")
    _check_type("model_name", model_name, str, "the name of a prompt profile, or None")
    _check_type("backend_config", backend_config, EngineConfig, "an EngineConfig; or give its fields by name")
    wanted = "a ChatTemplateConfig; model_name takes the name of a prompt profile"
    _check_type("chat_template_config", chat_template_config, ChatTemplateConfig, wanted)
    logging.getLogger("tilewise").setLevel(read_log_level(log_level))
    if backend_config is not None and kwargs:
        given = ", ".join(kwargs)
        raise ConfigError(f"Engine options ({given}) came beside backend_config; put them into it.", param=given)
    config = EngineConfig.from_options(kwargs) if backend_config is None else backend_config
    template = chat_template_config or ChatTemplateConfig()
    if model_name is not None:
        if template.model_name not in (None, model_name):
            raise ConfigError(
                f"model_name={model_name!r} and chat_template_config.model_name={template.model_name!r} name two "
                "prompt profiles; give one.",
                param="model_name",
            )
        template = replace(template, model_name=model_name)
    checkpoint = find_checkpoint(None if model_path is None else os.fspath(model_path), config)
    builder = create_builder(
        checkpoint.folder,
        checkpoint.model,
        template,
        max_dynamic_patch=max_dynamic_patch,
        min_dynamic_patch=min_dynamic_patch,
        allowed_media_hosts=allowed_media_hosts,
    )
    return Pipeline(launch_engine(checkpoint, config, num_tokens=builder.tokenizer.vocab_size), builder)


def _check_type(
    name: str, value: object, kind: type | tuple[type, ...], wanted: str, error: type[TilewiseError] = ConfigError
) -> None:
    """Refuse what is neither None nor of a `kind`."""
    if value is not None and not isinstance(value, kind):
        raise error(f"{name}={value!r:.80} must be {wanted}.", param=name)


class Pipeline(AbstractContextManager["Pipeline"]):
    """Answers prompts with one engine; may be called from several threads. Close it, or use it in `with`."""

    def __init__(self, engine: Engine, builder: RequestBuilder) -> None:
        """Take over `engine`; `close` ends it. `builder` is the model's, before the engine chose a session length."""
        self.engine = engine
        self.builder = replace(builder, model=engine.resolved.model, session_len=engine.resolved.session_len)
        # Also at the interpreter's exit, for scripts that never close.
        self._finalizer = weakref.finalize(self, engine.client.close)

    def __call__(
        self, prompts: Any, gen_config: Generations = None, *, use_tqdm: bool | None = None
    ) -> Response | list[Response] | list[Response | list[Response]]:
        """Answer one prompt with a `Response`, a list of prompts with a list in order.

        A prompt is 'text', (text, image), (text, [image, ...]) or an OpenAI message list; an image is a PIL image, a
        path, an http(s) or data URL. `gen_config` may be a list, one for each prompt; with `n` > 1 a list of n
        responses takes the prompt's place. `use_tqdm` shows a progress bar; `None` leaves it to length and terminal.

        Raises:
            InputError: a prompt, picture or setting is refused; of several, the message says which.
            EngineError: the engine failed, or is closed.
        """
        batch, is_batch = _as_batch(prompts)
        results = self.batch_infer(batch, gen_config, use_tqdm=use_tqdm)
        return results if is_batch else results[0]

    def batch_infer(
        self, prompts: Sequence[Any], gen_config: Generations = None, *, use_tqdm: bool | None = None
    ) -> list[Response | list[Response]]:
        """Answer several prompts, in order."""
        groups: Groups = []
        running = self._run(prompts, _spread(gen_config, len(prompts)), groups, is_streamed=False)
        with show_progress(len(prompts), use_tqdm) as advance, closing(running):
            for answer, _ in running:
                if all(choice.finish_reason is not None for choice in groups[answer.session_id]):
                    advance()
        answered = ([choice.response() for choice in choices] for choices in groups)
        return [choices if len(choices) > 1 else choices[0] for choices in answered]

    def stream_infer(self, prompts: Any, gen_config: Generations = None) -> Iterator[Response]:
        """Yield answers as they grow: `text` and `token_ids` are what is new, `session_id` the prompt's number.

        Each prompt's last piece, and no other, has a `finish_reason`; its counts are final. The texts of a prompt
        join to exactly the text that a call gives. Leaving the loop aborts what runs.
        """
        batch, _ = _as_batch(prompts)
        generations = _spread(gen_config, len(batch))
        if any(generation.n > 1 for generation in generations):
            raise InputError("n > 1 cannot be streamed; call the pipeline itself, or stream with n=1.", param="n")
        return self._stream(batch, generations)

    def _stream(self, batch: Sequence[Any], generations: Sequence[GenerationConfig]) -> Iterator[Response]:
        with closing(self._run(batch, generations, [], is_streamed=True)) as steps:
            for answer, delta in steps:
                yield answer.step_response(delta)

    def chat(self, prompt: Any, session: Session | None = None, gen_config: GenerationConfig | None = None) -> Session:
        """Answer `prompt` as the next turn of `session`, or of a new one; returns the session.

        A turn that fails leaves the session as it was; one that is interrupted keeps what was said until then.
        """
        session = Session() if session is None else session
        with closing(self._open_turn(prompt, session, gen_config, is_streamed=False)) as pieces:
            for _ in pieces:
                pass
        return session

    def stream_chat(
        self, prompt: Any, session: Session | None = None, gen_config: GenerationConfig | None = None
    ) -> Generator[Response]:
        """Yield the next turn's answer as it grows, in pieces as `stream_infer`'s; `session` has it at the end.

        A turn that fails leaves the session as it was. Leaving the loop, or an interrupt, aborts the answer: the
        session keeps what was said until then, with `abort` as its reason, or stays as it was if that is nothing.
        """
        return self._open_turn(prompt, session, gen_config, is_streamed=True)

    def _open_turn(
        self, prompt: Any, session: Session | None, gen_config: GenerationConfig | None, *, is_streamed: bool
    ) -> Generator[Response]:
        _check_type("session", session, Session, "a Session, or None for a new one", InputError)
        _check_type("gen_config", gen_config, GenerationConfig, "one GenerationConfig", InputError)
        generation = gen_config or GenerationConfig()
        if generation.n > 1:
            raise InputError("n > 1 has no place in a chat; a session continues one answer.", param="n")
        return self._stream_turn(prompt, Session() if session is None else session, generation, is_streamed)

    def _stream_turn(
        self, prompt: Any, session: Session, generation: GenerationConfig, is_streamed: bool
    ) -> Generator[Response]:
        messages = (*session.messages, *parse_prompt(prompt))
        jobs = self._create_jobs(messages, generation, 0, is_streamed)
        answer = jobs[0][1]
        try:
            with closing(follow(self.engine.client, jobs, 1)) as steps:
                for _, delta in steps:
                    yield answer.step_response(delta)
        except (GeneratorExit, KeyboardInterrupt):
            if answer.finish_reason is None:
                if not answer.own_text:
                    raise
                answer.finish_reason = FinishReason.ABORT
            session.add_turn(prompt, messages, answer.response(), answer.own_text)
            raise
        session.add_turn(prompt, messages, answer.response(), answer.own_text)

    def close(self) -> None:
        """End the engine and give back its memory; a closed pipeline answers nothing more."""
        self._finalizer()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(
        self, prompts: Sequence[Any], generations: Sequence[GenerationConfig], groups: Groups, *, is_streamed: bool
    ) -> Generator[tuple[Answer, str]]:
        """Follow all prompts; `groups` receives each prompt's answers, in order."""
        # Twice what runs at once: the next ones are prepared while these run, and a long list's pictures never all
        # lie in memory.
        max_running = 2 * self.engine.resolved.max_batch_size
        return follow(self.engine.client, self._prepare(prompts, generations, groups, is_streamed), max_running)

    def _prepare(
        self, prompts: Sequence[Any], generations: Sequence[GenerationConfig], groups: Groups, is_streamed: bool
    ) -> Iterator[Job]:
        for number, (prompt, generation) in enumerate(zip(prompts, generations, strict=True)):
            try:
                jobs = self._create_jobs(parse_prompt(prompt), generation, number, is_streamed)
            except InputError as error:
                if len(prompts) > 1:
                    error.args = (f"Prompt {number} of {len(prompts)}, counted from 0: {error}",)
                raise
            groups.append([answer for _, answer in jobs])
            yield from jobs

    def _create_jobs(
        self, messages: Sequence[Message], generation: GenerationConfig, session_id: int, is_streamed: bool
    ) -> list[Job]:
        """One request and answer for each of `n` choices; the pictures are prepared once."""
        if not self._finalizer.alive:
            raise EngineError("This pipeline is closed; make a new one with pipeline(...).")
        request = replace(self.builder.build(messages, generation, ""), is_streamed=is_streamed)
        return create_jobs(request, self.builder, session_id)


def _as_batch(prompts: object) -> tuple[Sequence[Any], bool]:
    """The prompts as a list, and whether the caller gave one."""
    if is_message_list(prompts) or not isinstance(prompts, list):
        return [prompts], False
    return cast(list[Any], prompts), True


def _spread(gen_config: Generations, num_prompts: int) -> list[GenerationConfig]:
    if gen_config is None or isinstance(gen_config, GenerationConfig):
        return [gen_config or GenerationConfig()] * num_prompts
    given: list[Any] = list(gen_config) if isinstance(cast(object, gen_config), (list, tuple)) else []
    if len(given) != num_prompts or not all(isinstance(item, GenerationConfig) for item in given):
        text = f"gen_config must be one GenerationConfig or a list of one for each of the {num_prompts} prompts."
        raise InputError(text, param="gen_config")
    return given
