"""Gradio's chat, held to texts and uploaded pictures.

A question's pictures, its text, and a failure are messages of their own. What the browser gets of a text is inert; what
the conversation keeps, and programs get, is the text itself. No component of the page stores a file, or fetches one.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, cast

import gradio as gr
from gradio.utils import abspath, get_upload_folder

from tilewise.demo import picture_path
from tilewise.page.markup import make_inert, restore
from tilewise.page.turns import FAILED, as_list


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
    """gradio's, but a question's pictures, its text, and a failure are messages of their own.

    QUIRK: in the browser, gradio cannot edit a text that shares a message with files.
    """

    def _message_as_message_dict(self, message: Any, role: Any) -> Any:
        if isinstance(message, Failure):
            said = [{"role": role, "content": message.said}] if message.said else []
            return [*said, {"role": role, "content": message.reason, "metadata": FAILED}]
        turns = cast(list[Any], super()._message_as_message_dict(message, role))  # pyright: ignore[reportUnknownMemberType]
        parts = [(turn, turn["content"]) for turn in turns]
        return [{**turn, "content": part} for turn, all_of in parts for part in as_list(all_of)]

    def _edit_message(self, history: Any, edit_data: gr.EditData) -> Any:
        edited = restore(str(edit_data.value))
        *kept, _ = cast(tuple[Any, ...], super()._edit_message(history, edit_data))  # pyright: ignore[reportUnknownMemberType]
        return *kept, edited


class PageBlocks(gr.Blocks):
    """gradio's, held to texts and to the pictures that were uploaded to the page, beside the bundled one.

    Gradio fetches whatever address a value names, for any component. It copies files of the working directory and of
    the system's temporary folder where a conversation that a browser restores names one. It creates the components that
    a message holds, with the arguments that come with it.

    NOTE: gradio's components are not subclassed, since it writes a stub beside the file of each subclass.
    """

    async def preprocess_data(self, block_fn: Any, inputs: Any, state: Any, explicit_call: bool = False) -> Any:
        """Give functions the texts themselves.

        Raises:
            gradio.Error: a message holds a component.
        """
        _hold_to_uploads(block_fn.inputs, state)
        is_chat = [isinstance(component, gr.Chatbot) for component in block_fn.inputs]
        if any(_holds_component(value) for value, is_messages in zip(inputs, is_chat, strict=False) if is_messages):
            raise gr.Error("A message holds text and pictures only.", print_exception=False)
        values = await cast(Any, super()).preprocess_data(block_fn, inputs, state, explicit_call)
        for messages in itertools.compress(values, is_chat):
            for part in _texts(messages):
                part["text"] = restore(part["text"])
        return values

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> Any:
        """Give browsers what they may show of the texts."""
        _hold_to_uploads(block_fn.outputs, state)
        data = await cast(Any, super()).postprocess_data(block_fn, predictions, state)
        is_chat = [isinstance(component, gr.Chatbot) for component in block_fn.outputs]
        for value in itertools.compress(data, is_chat):
            messages = _find_messages(value)
            for message in messages:
                metadata = cast(dict[str, Any], message.get("metadata") or {})
                message["metadata"] = FAILED if metadata.get("id") == FAILED["id"] else None
                message["options"] = None
            for part in _texts(messages):
                part["text"] = make_inert(part["text"])
        return data


def _find_messages(value: Any) -> list[Any]:
    """A conversation comes as a list, or as one of the properties of an update."""
    if isinstance(value, dict):
        value = cast(dict[str, Any], value).get("value")
    return cast(list[Any], value or [])


def _texts(messages: Iterable[Any]) -> Iterator[dict[str, Any]]:
    return (part for message in messages for part in message["content"] if part["type"] == "text")


def _holds_component(value: Any) -> bool:
    if isinstance(value, dict):
        return "component" in value or any(map(_holds_component, cast(dict[str, Any], value).values()))
    return isinstance(value, list) and any(map(_holds_component, cast(list[Any], value)))


def _hold_to_uploads(components: Iterable[Any], state: Any) -> None:
    for component in components:
        # NOTE: an update gives the session a component of its own, which has nothing of what was set on the first.
        own = state[component._id] if state is not None and component._id in state else component
        store = getattr(own, "async_move_resource_to_block_cache", None)
        if store is not None and not isinstance(store, _Store):
            own.async_move_resource_to_block_cache = _Store(store)


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
