import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DeviceConfig, EngineConfig, resolve
from tilewise.demo import model_folder
from tilewise.engine.messages import (
    MESSAGE,
    REPORT,
    START,
    Abort,
    Failed,
    Heartbeat,
    Log,
    Outputs,
    Ready,
    Shutdown,
    Start,
    Submit,
    decode,
    encode,
)
from tilewise.errors import InputError
from tilewise.types import FinishReason, GenerationConfig, ImageSpan, PreparedImage, Request, StepOutput, TokenLogprob

IMAGE = PreparedImage(2, 3, memoryview(bytes(range(18))), 1, 1, False, b"\xff" * 32)
PICTURES = Request("r", (1, 2, 3), (ImageSpan(0, 1, 0), ImageSpan(1, 2, 1)), (IMAGE, replace(IMAGE, digest=b"2")))
MODEL = load_model_config(model_folder())
RESOLVED = resolve(EngineConfig(device="cpu"), MODEL, DeviceConfig("cuda", 1, (9, 0)))

ids = st.integers(0, 2**31 - 1)
generations = st.builds(
    GenerationConfig,
    temperature=st.floats(0, 100) | st.integers(0, 100),
    random_seed=st.none() | st.integers(0, 2**64 - 1),
    stop_words=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), max_size=3),
    logit_bias=st.lists(st.tuples(ids, st.floats(-100, 100)), max_size=3),
    logprobs=st.none() | st.integers(0, 20),
)
pictures = st.builds(
    lambda width, height, fill: PreparedImage(
        width, height, memoryview(bytes([fill]) * (width * height * 3)), 1, 1, True, b"d"
    ),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 255),
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    images = tuple(draw(st.lists(pictures, max_size=3)))
    spans = tuple(ImageSpan(2 * number, 2 * number + 2, number) for number in range(len(images)))
    token_ids = (0,) * (2 * len(images)) + tuple(draw(st.lists(ids, min_size=1, max_size=9)))
    stops = tuple(draw(st.lists(ids, max_size=3)))
    name, is_streamed = draw(st.text(st.characters(codec="utf-8"))), draw(st.booleans())
    return Request(name, token_ids, spans, images, draw(generations), stops, "n", is_streamed)


@given(requests())
def test_a_request_comes_out_as_it_went_in(request: Request) -> None:
    frames = encode(Submit((request,)))
    assert len(frames) == 1 + len(request.images)
    assert decode(MESSAGE, [memoryview(frame) for frame in frames]) == Submit((request,))


@given(requests(), st.integers(1, 3))
def test_requests_of_the_same_pictures_share_them_on_the_wire_and_beyond(request: Request, num_more: int) -> None:
    more = tuple(replace(request, request_id=str(number)) for number in range(num_more))
    frames = encode(Submit((request, *more)))
    assert len(frames) == 1 + len(request.images)
    come_out = decode(MESSAGE, [memoryview(frame) for frame in frames])
    assert come_out == Submit((request, *more))
    assert isinstance(come_out, Submit)
    assert all(each.images is come_out.requests[0].images for each in come_out.requests)


def test_requests_of_other_pictures_do_not_travel_together() -> None:
    other = replace(PICTURES, images=(PICTURES.images[0],) * 2)
    with pytest.raises(InputError, match="same pictures"):
        encode(Submit((PICTURES, other)))


def test_pixels_that_arrive_cannot_be_changed() -> None:
    header, *pixels = encode(Submit((PICTURES,)))
    message = decode(MESSAGE, [header, *(bytearray(frame) for frame in pixels)])
    assert isinstance(message, Submit)
    assert all(image.pixels.readonly for image in message.requests[0].images)


def test_pixels_are_sent_as_they_lie() -> None:
    assert all(
        frame is image.pixels for frame, image in zip(encode(Submit((PICTURES,)))[1:], PICTURES.images, strict=True)
    )


@pytest.mark.parametrize("message", [Abort("r"), Shutdown()])
def test_what_a_client_says_comes_out_as_it_went_in(message: Any) -> None:
    assert decode(MESSAGE, encode(message)) == message


@pytest.mark.parametrize(
    "report",
    [
        Ready(RESOLVED),
        Failed("ConfigError", "no", None),
        Outputs(
            (
                StepOutput("a", (1, 2), (TokenLogprob(1, -0.5, ((1, -0.5), (2, -1.5))),), None, None, 7),
                StepOutput("b", finish_reason=FinishReason.ERROR, error="no"),
            )
        ),
        Heartbeat({"steps": 1.0}),
        Log("tilewise", 30, "行"),
    ],
)
def test_what_an_engine_says_comes_out_as_it_went_in(report: Any) -> None:
    assert decode(REPORT, encode(report)) == report


def test_a_start_comes_out_as_it_went_in() -> None:
    start = Start("folder", MODEL, {"device": "cpu", "session_len": None, "cache_max_entry_count": 0.5}, 30)
    assert decode(START, encode(start)) == start


class Opens:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def make_junk(mark: Path) -> list[list[bytes]]:
    """Frames that are no message; the pickle among them would leave `mark`."""
    header, *pixels = encode(Submit((PICTURES,)))
    forged = msgspec.msgpack.decode(encode(Submit((PICTURES, PICTURES)))[0])
    forged["requests"][1]["images"][1]["width"] = 9
    loose = msgspec.msgpack.decode(header)
    loose["requests"][0]["generation"]["temperature"] = float("nan")
    return [
        [b""],
        [b"\x00"],
        [b"\xc1" * 100],
        [b"\x91" * 200_000],
        [b"\xdf\xff\xff\xff\xff"],
        [pickle.dumps(Opens(mark))],
        [header],
        [header, *pixels, b""],
        [header, pixels[0], pixels[1][:-1]],
        [header[:-1], *pixels],
        [header + b"\x00", *pixels],
        [msgspec.msgpack.encode(loose), *pixels],
        [msgspec.msgpack.encode(forged), *pixels],
        [*encode(Abort("r")), b"more"],
        [msgspec.msgpack.encode({"type": "Start"})],
        [msgspec.msgpack.encode({"type": "Abort", "request_id": 5})],
        [msgspec.msgpack.encode({"type": "Submit", "requests": []})],
    ]


def test_junk_is_refused_by_every_decoder_and_nothing_in_it_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    decoders: list[Any] = [START, MESSAGE, REPORT]
    for frames in make_junk(mark):
        for decoder in decoders:
            with pytest.raises(Exception):  # noqa: B017, PT011
                decode(decoder, frames)
    assert not mark.exists()
    pickle.loads(make_junk(mark)[5][0])
    assert mark.exists(), "the trap works"


def test_neither_side_takes_what_only_the_other_may_say() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(MESSAGE, encode(Heartbeat({})))
    with pytest.raises(msgspec.ValidationError):
        decode(REPORT, encode(Abort("r")))


@pytest.mark.parametrize(
    "request_",
    [
        Request("\ud800", (1,)),
        Request("r", (2**70,)),
        replace(PICTURES, images=(IMAGE, replace(IMAGE, width=3))),
    ],
)
def test_what_the_other_end_would_drop_is_refused_before_it_is_sent(request_: Request) -> None:
    with pytest.raises(InputError, match="cannot be sent"):
        encode(Submit((request_,)))
