"""Gradio's chat, held to texts and uploaded pictures.

A question's pictures, its text, and a failure are messages of their own. What the browser gets of a text is inert; what
the conversation keeps, and programs get, is the text itself. No component of the page stores a file, or fetches one.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import gradio as gr
from gradio.utils import abspath, get_upload_folder

from tilewise.demo import picture_path
from tilewise.page.markup import make_inert, restore
from tilewise.page.turns import FAILED, as_list
from tilewise.page.words import in_both

# Of a question, and of a whole chat: more than a session of the model holds.
MAX_TEXT_CHARACTERS = 100_000
_MAX_CHAT_CHARACTERS = 1_000_000
_LOST_PICTURE = {"type": "text", "text": " ".join(in_both("picture_gone"))}


class Failure(str):
    """What a program is told where an answer failed: what was `said` of it, and then what went wrong."""

    def __new__(cls, said: str, reason: str) -> "Failure":
        """Keep both apart as well."""
        failure = super().__new__(cls, said + reason)
        failure.said, failure.reason = said, reason
        return failure

    said: str
    reason: str


class Chat(gr.ChatInterface):
    """Gives each picture, each text and each failure a message of its own.

    QUIRK: in the browser, gradio cannot edit a text that shares a message with files.
    """

    def _message_as_message_dict(self, message: Any, role: Any) -> Any:
        if isinstance(message, Failure):
            said = [{"role": role, "content": message.said}] if message.said else []
            return [*said, {"role": role, "content": message.reason, "metadata": FAILED}]
        turns = cast(list[Any], super()._message_as_message_dict(message, role))  # pyright: ignore[reportUnknownMemberType]
        parts = [(turn, turn["content"]) for turn in turns]
        return [{**turn, "content": part} for turn, all_of in parts for part in as_list(all_of)]

    def _generate_chat_title(self, conversation: Any) -> str:
        told = [message for message in conversation if _LOST_PICTURE not in as_list(message["content"])]
        return cast(Any, super())._generate_chat_title(told)

    def _edit_message(self, history: Any, edit_data: gr.EditData) -> Any:
        edited = restore(str(edit_data.value))
        _check_length(edited)
        history, state, _ = cast(Any, super())._edit_message(history, edit_data)
        return history, state, edited


class PageBlocks(gr.Blocks):
    """Checks what each of the page's functions is given, and makes texts inert in what it gives.

    Gradio fetches whatever address a value names, for any component. It copies files of the working directory and of
    the system's temporary folder where a conversation that a browser restores names one. It creates the components that
    a message holds, with the arguments that come with it.

    NOTE: gradio's components are not subclassed, since it writes a stub beside the file of each subclass.
    """

    async def preprocess_data(self, block_fn: Any, inputs: Any, state: Any, explicit_call: bool = False) -> Any:
        """Give functions the texts themselves, and a text in place of each picture that is not kept any more.

        Raises:
            gradio.Error: a message holds a component, or a text is too long.
        """
        _hold_to_uploads(block_fn.inputs, state)
        checked = [_check(component, value) for component, value in zip(block_fn.inputs, inputs, strict=False)]
        return await cast(Any, super()).preprocess_data(block_fn, checked, state, explicit_call)

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> Any:
        """Give browsers what they may show of the texts."""
        _hold_to_uploads(block_fn.outputs, state)
        data = await cast(Any, super()).postprocess_data(block_fn, predictions, state)
        for component, value in zip(block_fn.outputs, data, strict=False):
            if isinstance(component, gr.Chatbot):
                _make_messages_inert(_find_messages(value))
        return data


def _check(component: Any, value: Any) -> Any:
    """What a function may get of the value that a client sent for a component."""
    value = _restore_all(value)
    if isinstance(component, gr.Chatbot):
        if _holds_component(value):
            raise gr.Error("A message holds text and pictures only.", print_exception=False)
        if _count_characters(value) > _MAX_CHAT_CHARACTERS:
            raise gr.Error(
                f"A chat has at most {_MAX_CHAT_CHARACTERS} characters. Start a new one.", print_exception=False
            )
    elif isinstance(component, (gr.Textbox, gr.MultimodalTextbox)):
        _check_length(value)
    if isinstance(component, (gr.Chatbot, gr.BrowserState)) and isinstance(value, list):
        return _replace_lost_pictures(value)
    return value


def _check_length(value: Any) -> None:
    if _count_characters(value) > MAX_TEXT_CHARACTERS:
        raise gr.Error(f"A text has at most {MAX_TEXT_CHARACTERS} characters. Shorten it.", print_exception=False)


def _make_messages_inert(messages: list[Any]) -> None:
    for message in messages:
        metadata = cast(dict[str, Any], message.get("metadata") or {})
        message["metadata"] = FAILED if metadata.get("id") == FAILED["id"] else None
        message["options"] = None
        for part in message["content"]:
            if part["type"] == "text":
                part["text"] = make_inert(part["text"])


def _find_messages(value: Any) -> list[Any]:
    """A conversation comes as a list, or as one of the properties of an update."""
    if isinstance(value, dict):
        value = cast(dict[str, Any], value).get("value")
    return cast(list[Any], value or [])


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from cast(dict[str, Any], value).values()
    elif isinstance(value, list):
        yield from cast(list[Any], value)


def _holds_component(value: Any) -> bool:
    return (isinstance(value, dict) and "component" in value) or any(map(_holds_component, _children(value)))


def _count_characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return sum(map(_count_characters, _children(value)))


def _restore_all(value: Any) -> Any:
    if isinstance(value, str):
        return restore(value)
    if isinstance(value, list):
        return [_restore_all(item) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        return {key: _restore_all(item) for key, item in cast(dict[str, Any], value).items()}
    return value


def _replace_lost_pictures(value: Any) -> Any:
    """The messages, with a text for each part whose picture is not kept: gradio refuses a whole request for one."""
    if isinstance(value, list):
        return [_replace_lost_pictures(item) for item in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    part = cast(dict[str, Any], value)
    file = part.get("file", part)
    if isinstance(file, dict) and "path" in file and not _is_kept(cast(dict[str, Any], file)["path"]):
        return dict(_LOST_PICTURE)
    return {key: _replace_lost_pictures(item) for key, item in part.items()}


def _is_kept(path: Any) -> bool:
    kept = abspath(str(path))
    return kept == picture_path() or (kept.is_relative_to(abspath(get_upload_folder())) and Path(kept).is_file())


def _hold_to_uploads(components: Iterable[Any], state: Any) -> None:
    for component in components:
        # NOTE: an update gives the session a component of its own, which has nothing of what was set on the first.
        current = component
        if state is not None and component._id in state:
            current = state[component._id]
        store = getattr(current, "async_move_resource_to_block_cache", None)
        if store is not None and not isinstance(store, _Store):
            current.async_move_resource_to_block_cache = _Store(store)


class _Store:
    """What a component calls for a file that a value names."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def __call__(self, source: Any) -> Any:
        if source is None:
            return None
        path = abspath(str(source))
        if path.is_relative_to(abspath(get_upload_folder())):
            return str(path)
        if path == picture_path():
            return await self._store(source)
        raise gr.Error("Send the picture itself, not its address or its path.", print_exception=False)
