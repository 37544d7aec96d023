"""What a caller says, in any of the accepted forms, as messages of texts, pictures and tool calls in order.

Nothing is fetched, decoded or tokenised here. A key, type or role that is not honoured is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from tilewise.errors import InputError

IMAGE_MARK = "<IMAGE_TOKEN>"
ROLES = ("system", "tools", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture in a message: a PIL image, a path, an http(s) or data URL, not looked at yet.

    `None` takes the engine's tile counts. `detail` is OpenAI's: `low` one tile, `high` as many as the model was
    trained with, `auto` the engine's default; it cannot be combined with `max_dynamic_patch`.
    """

    source: Any
    max_dynamic_patch: int | None = None
    min_dynamic_patch: int | None = None
    detail: Literal["auto", "low", "high"] = "auto"

    def __post_init__(self) -> None:
        """Refuse two answers to the same question."""
        if self.detail not in ("auto", "low", "high"):
            raise InputError(f"detail {self.detail!r:.80} is unknown; use 'auto', 'low' or 'high'.", param="detail")
        if self.detail != "auto" and self.max_dynamic_patch is not None:
            raise InputError("Give either detail or max_dynamic_patch, not both.", param="detail")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What an assistant asked of a tool; `arguments` is JSON text, as the assistant wrote it."""

    id: str
    name: str
    arguments: str


Part = str | ImagePart | ToolCall


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: texts, pictures and calls in the order in which the model reads them.

    `tools` says which tools there are, and `tool` what one of them answered to the call `call_id`.
    """

    role: str
    parts: tuple[Part, ...]
    call_id: str | None = None

    def __post_init__(self) -> None:
        """Refuse unknown roles, and pictures that are not the user's."""
        if self.role not in ROLES:
            raise InputError(f"Role {self.role!r:.80} is unknown; use {', '.join(ROLES)}.", param="role")
        if self.role != "user" and self.images:
            raise InputError(f"A {self.role} message holds a picture; only user messages may.", param="messages")

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The pictures, in order."""
        return tuple(part for part in self.parts if isinstance(part, ImagePart))

    @property
    def call_ids(self) -> list[str]:
        """The ids of its calls, in order."""
        return [part.id for part in self.parts if isinstance(part, ToolCall)]

    @property
    def text(self) -> str:
        """The texts, a line break between them."""
        return "\n".join(part for part in self.parts if isinstance(part, str))


def parse_prompt(prompt: object) -> tuple[Message, ...]:
    """Read one prompt: 'text', (text, image), (text, [image, ...]) or an OpenAI message list.

    The pictures of a pair come before its text, unless `<IMAGE_TOKEN>` in the text marks their places; in any
    other form the mark is mere text. Content parts keep their order.

    Raises:
        InputError: the prompt has none of these forms, or holds something that would not be honoured.
    """
    if isinstance(prompt, str):
        messages = (Message("user", (prompt,)),)
    elif isinstance(prompt, tuple):
        messages = (_parse_pair(cast(tuple[object, ...], prompt)),)
    elif is_message_list(prompt):
        messages = tuple(_parse_message(message) for message in cast(list[Mapping[str, object]], prompt))
    else:
        raise InputError(
            f"A prompt is a text, a pair (text, image or images) or a list of messages with role and content; "
            f"got {_kind(prompt)}.",
            param="prompt",
        )
    check_turns(messages)
    return messages


def is_message_list(prompt: object) -> bool:
    """Whether `prompt` is one conversation in OpenAI's form, rather than a list of prompts."""
    if not isinstance(prompt, list):
        return False
    items = cast(list[object], prompt)
    return bool(items) and all(isinstance(item, Mapping) for item in items)


def check_turns(messages: Sequence[Message]) -> None:
    """Hold a conversation to [system], [tools], user, assistant, user, ..., the last word the user's and not empty.

    An assistant's calls are answered by as many messages of role `tool`, after which it is the assistant's turn again.

    Raises:
        InputError: it is ordered otherwise; the message says where.
    """
    openings = (["system", "tools"], ["system"], ["tools"], list[str]())
    roles = [message.role for message in messages[:2]]
    start = next(len(opening) for opening in openings if opening == roles[: len(opening)])
    expected, unanswered = "user", list[str]()
    for place, message in enumerate(messages[start:], start=start + 1):
        if message.role != expected:
            raise InputError(
                f"Message {place} is of role {message.role!r} where {expected!r} is due: one system message may open, "
                "then user and assistant take turns; merge what belongs to one turn.",
                param="messages",
            )
        if message.role == "tool":
            if message.call_id not in unanswered:
                raise InputError(
                    f"Message {place} has the tool_call_id {message.call_id!r:.80}; the calls to answer are "
                    f"{unanswered!r:.200}.",
                    param="tool_call_id",
                )
            unanswered.remove(message.call_id)
        else:
            unanswered = message.call_ids
        expected = "tool" if unanswered else {"assistant": "user"}.get(message.role, "assistant")
    if expected != "assistant":
        raise InputError("The last message must be the user's; there is nothing to answer.", param="messages")
    if messages[-1].role == "user" and not messages[-1].images and not messages[-1].text:
        raise InputError("The last message is empty; give it text or a picture.", param="messages")


def _parse_pair(pair: tuple[object, ...]) -> Message:
    text = pair[0] if len(pair) == 2 else None
    if not isinstance(text, str):
        kinds = ", ".join(_kind(item) for item in pair)
        raise InputError(f"A pair is (text, image) or (text, [image, ...]); got ({kinds}).", param="prompt")
    given = pair[1]
    sources = list(cast(Sequence[object], given)) if isinstance(given, (list, tuple)) else [given]
    if any(source is None for source in sources):
        raise InputError("An image is None; give a PIL image, a path or a URL.", param="prompt")
    images = [ImagePart(source) for source in sources]
    first, *rest = text.split(IMAGE_MARK)
    if not rest:
        return Message("user", (*images, text) if text else tuple(images))
    if len(rest) != len(images):
        raise InputError(
            f"The text marks {len(rest)} places with {IMAGE_MARK}, but {len(images)} pictures came with it; "
            "mark each or none.",
            param="prompt",
        )
    # The template breaks the line after a picture, so a line break of the caller's own there is not doubled.
    placed = [part for image, after in zip(images, rest, strict=True) for part in (image, after.removeprefix("\n"))]
    return Message("user", tuple(part for part in (first, *placed) if part != ""))


def _parse_message(message: Mapping[str, object]) -> Message:
    # SDKs send back an answer with its unused keys at null.
    given = {key: value for key, value in message.items() if value is not None}
    role, content = given.get("role"), given.get("content")
    more = {"assistant": ("tool_calls",), "tool": ("tool_call_id",)}.get(str(role), ())
    _check_keys("A message", given, ("role", "content", *more))
    if not isinstance(role, str):
        raise InputError(f"A message needs a role, one of {', '.join(ROLES)}; got {_kind(role)}.", param="role")
    call_id = given.get("tool_call_id")
    if role == "tool" and not isinstance(call_id, str):
        raise InputError("A message of role 'tool' needs the tool_call_id that it answers.", param="tool_call_id")
    calls = _parse_calls(given["tool_calls"]) if "tool_calls" in given else ()
    parts = () if calls and content is None else _parse_content(content)
    return Message(role, (*parts, *calls), cast(str | None, call_id))


def _parse_calls(calls: object) -> tuple[ToolCall, ...]:
    parsed: list[ToolCall] = []
    for call in cast(Sequence[object], calls) if isinstance(calls, (list, tuple)) else (None,):
        match call:
            case {"id": str(call_id), "function": {"name": str(name), "arguments": str(arguments)}}:
                fields = cast(Mapping[str, Any], call)
                _check_keys("A tool call", fields, ("id", "type", "function", "index"))
                _check_keys("A tool call's function", fields["function"], ("name", "arguments"))
                parsed.append(ToolCall(call_id, name, arguments))
            case _:
                text = "tool_calls is a list of objects with an id and a function of a name and arguments, all texts."
                raise InputError(text, param="tool_calls")
    return tuple(parsed)


def _parse_content(content: object) -> tuple[str | ImagePart, ...]:
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, (list, tuple)):
        raise InputError(f"A message's content is a text or a list of parts; got {_kind(content)}.", param="content")
    parts = tuple(_parse_part(part) for part in cast(Sequence[object], content))
    return tuple(part for part in parts if part != "")


def _parse_part(part: object) -> str | ImagePart:
    if not isinstance(part, Mapping):
        raise InputError(f"A content part is an object with a type; got {_kind(part)}.", param="content")
    fields = cast(Mapping[str, object], part)
    kind = fields.get("type")
    if kind == "text":
        _check_keys("A text part", fields, ("type", "text"))
        text = fields.get("text")
        if not isinstance(text, str):
            raise InputError(f"A text part needs a text; got {_kind(text)}.", param="content")
        return text
    if kind == "image_url":
        _check_keys("An image_url part", fields, ("type", "image_url"))
        return _parse_image_url(fields.get("image_url"))
    raise InputError(f"Content part type {kind!r:.80} is not supported; use 'text' or 'image_url'.", param="content")


def _parse_image_url(image_url: object) -> ImagePart:
    if not isinstance(image_url, Mapping):
        raise InputError(f"image_url is an object with a url; got {_kind(image_url)}.", param="image_url")
    given = {key: value for key, value in cast(Mapping[str, Any], image_url).items() if value is not None}
    _check_keys("image_url", given, ("url", "detail", "max_dynamic_patch", "min_dynamic_patch"))
    if "url" not in given:
        raise InputError("image_url needs a url: http(s), or data: with the picture in base64.", param="image_url")
    most, least = given.get("max_dynamic_patch"), given.get("min_dynamic_patch")
    return ImagePart(given["url"], most, least, given.get("detail", "auto"))


def _check_keys(what: str, given: Mapping[str, object], allowed: tuple[str, ...]) -> None:
    for key in given:
        if key not in allowed:
            raise InputError(f"{what} has no field {key!r:.80}; it has {', '.join(allowed)}.", param=f"{key!s:.80}")


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
