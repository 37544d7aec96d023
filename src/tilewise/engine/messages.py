"""What a client and an engine say to each other, and the one codec that puts it on a wire.

A message is a typed msgpack frame; the pixels of its pictures follow it uncut, a frame each, and once for all of its
requests. Whatever does not decode to exactly these types is refused. Within one process messages are handed over as
they are.
"""

import queue
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec
from msgspec.msgpack import Decoder, Encoder

from tilewise.config import ModelConfig, ResolvedConfig
from tilewise.errors import InputError
from tilewise.types import PreparedImage, Request, StepOutput


class Start(msgspec.Struct, frozen=True, tag=True):
    """What an engine's process is to load: a folder, its facts, and options as `EngineConfig.from_options` takes."""

    folder: str
    model: ModelConfig
    options: dict[str, bool | int | float | str | None]
    log_level: int


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Answer these requests, one at least, which have the same pictures."""

    requests: tuple[Request, ...]


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Stop computing for this request; unknown ids mean nothing."""

    request_id: str


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End the loop; what still runs is aborted."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine is loaded and takes requests."""

    resolved: ResolvedConfig


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine could not start: the class of `tilewise.errors`, and what it was made of."""

    error: str
    text: str
    param: str | None


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """All that one step says."""

    outputs: tuple[StepOutput, ...]


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The engine's process runs, and these are its counters."""

    stats: dict[str, float]


class Log(msgspec.Struct, frozen=True, tag=True):
    """A line for the log of the process that started the engine."""

    logger: str
    level: int
    text: str


Message = Submit | Abort | Shutdown
# What an engine's loop listens to; None says that something was prepared for it.
Inbox = queue.SimpleQueue[Message | None]
Report = Ready | Failed | Outputs | Heartbeat | Log
Kind = TypeVar("Kind")

_NO_PIXELS = memoryview(b"")
_ENCODER = Encoder()
START: Decoder[Start] = Decoder(Start)
MESSAGE: Decoder[Message] = Decoder(Message)
REPORT: Decoder[Report] = Decoder(Report)


def encode(message: Start | Message | Report) -> list[bytes | memoryview]:
    """Return the frames of a message; pixels are the request's own bytes, not a copy.

    What a request is made of was checked when it was made, so that the other end takes whatever encodes.

    Raises:
        InputError: it does not encode, or its requests do not have the same pictures.
    """
    if not isinstance(message, Submit):
        return [_ENCODER.encode(message)]
    images = message.requests[0].images
    bare = tuple(replace(image, pixels=_NO_PIXELS) for image in images)
    pixels = [image.pixels for image in images]
    try:
        _check_pictures(message, pixels)
        return [_ENCODER.encode(_with_images(message, bare)), *pixels]
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise InputError(f"The request cannot be sent to the engine: {error}.") from None


def decode(decoder: Decoder[Kind], frames: Sequence[bytes | memoryview]) -> Kind:
    """Return the message of these frames; pixels are views of theirs.

    Raises:
        Exception: of any kind, where the frames are no message; nothing in them has run.
    """
    message, pixels = decoder.decode(frames[0]), frames[1:]
    if not isinstance(message, Submit):
        if pixels:
            raise ValueError("only requests are followed by pixels")
        return message
    _check_pictures(message, pixels)
    views = (memoryview(frame).toreadonly() for frame in pixels)
    images = zip(message.requests[0].images, views, strict=True)
    return _with_images(message, tuple(replace(image, pixels=view) for image, view in images))


def _with_images(message: Kind, images: tuple[PreparedImage, ...]) -> Kind:
    assert isinstance(message, Submit)
    return type(message)(tuple(replace(request, images=images) for request in message.requests))


def _check_pictures(message: Submit, pixels: Sequence[bytes | memoryview]) -> None:
    images = message.requests[0].images
    if any(request.images != images for request in message.requests):
        raise ValueError("the requests of a message must have the same pictures")
    if [len(frame) for frame in pixels] != [image.width * image.height * 3 for image in images]:
        raise ValueError("the frames that follow are not the pixels of its pictures")
