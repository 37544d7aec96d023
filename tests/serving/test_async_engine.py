"""Admission, ends and wake-ups of the engine behind a server, over a scripted one."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.processes import PATIENCE_S
from tests.scripted import HookedBuilder, Script, ScriptedClient, say
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DeviceConfig, EngineConfig, resolve
from tilewise.demo import model_folder, picture_path
from tilewise.engine.launch import Checkpoint, Engine
from tilewise.errors import CapacityError, EngineError, InputError, QueueFullError
from tilewise.inputs.conversation import parse_prompt
from tilewise.inputs.media.fetch import check_wanted
from tilewise.inputs.media.sources import prepare_image
from tilewise.inputs.request_builder import create_builder
from tilewise.plan import count_tile_work
from tilewise.serving.async_engine import AsyncEngine
from tilewise.serving.stream import Stream
from tilewise.types import FinishReason, GenerationConfig, PreparedImage, Request, StepOutput, TilingParameters

MakeEngine = Callable[..., tuple[AsyncEngine, ScriptedClient]]
HELLO = parse_prompt("hello")
PICTURE = parse_prompt(("look", str(picture_path())))


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    engines: list[AsyncEngine] = []

    def make(
        script: Script, *, max_batch_size: int = 2, max_queued: int = 0, **options: Any
    ) -> tuple[AsyncEngine, ScriptedClient]:
        model = replace(load_model_config(model_folder()), is_random=False)
        config = EngineConfig(max_batch_size=max_batch_size)
        client, checkpoint = ScriptedClient(script), Checkpoint(model_folder(), model)
        engine = Engine(client, resolve(config, model, DeviceConfig("cpu")))
        builder = create_builder(checkpoint.folder, checkpoint.model)
        engines.append(AsyncEngine(builder, max_queued=max_queued, **options))
        engines[-1].attach(engine)
        return engines[-1], client

    yield make
    for engine in engines:
        engine.close()


async def read(stream: Stream) -> list[tuple[int, str | None]]:
    with stream:
        return [(index, piece.finish_reason) async for index, piece in stream]


def test_every_choice_ends_once_and_room_is_given_back(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(lambda _: say([5, 6]))

    async def run() -> None:
        for _ in range(3):
            pieces = await read(await engine.open(HELLO, GenerationConfig(n=2)))
            assert sorted(pieces, key=str) == sorted([(0, None), (0, "length"), (1, None), (1, "length")], key=str)
            assert engine.num_open == 0

    asyncio.run(run())


def test_pictures_of_a_request_are_timed_by_its_own_engine_alone(make_engine: MakeEngine) -> None:
    engines = [make_engine(lambda _: say([5]))[0] for _ in range(2)]

    async def run() -> None:
        await read(await engines[0].open(PICTURE, GenerationConfig()))

    asyncio.run(run())
    counts = [_read_count(engine, "tilewise:picture_decode_seconds_count") for engine in engines]
    assert counts == [1.0, 0.0]


def _read_count(engine: AsyncEngine, name: str) -> float:
    lines = engine.metrics.text().decode().splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(name)))


def test_what_does_not_fit_is_refused_now_or_for_ever(make_engine: MakeEngine) -> None:
    held = threading.Event()

    def wait(_: Request) -> Sequence[StepOutput]:
        held.wait()
        return say([5])

    engine, _ = make_engine(wait, max_batch_size=1, max_queued=1)

    async def run() -> None:
        with pytest.raises(InputError, match="n is 3"):
            await engine.open(HELLO, GenerationConfig(n=3))
        streams = [await engine.open(HELLO, GenerationConfig()) for _ in range(2)]
        with pytest.raises(QueueFullError):
            await engine.open(HELLO, GenerationConfig())
        held.set()
        for stream in streams:
            await read(stream)
        await read(await engine.open(HELLO, GenerationConfig()))

    asyncio.run(run())
    assert engine.num_open == 0


def test_leaving_during_a_build_submits_nothing(make_engine: MakeEngine) -> None:
    engine, client = make_engine(lambda _: say([5]), max_batch_size=64)
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go_on.wait()

    engine.builder = HookedBuilder.wrap(engine.builder, before_build=wait)

    async def run() -> None:
        # More than there are threads: some builds are cancelled before they begin.
        tasks = [asyncio.create_task(engine.open(HELLO, GenerationConfig())) for _ in range(40)]
        await asyncio.to_thread(begun.wait)
        assert engine.num_open == 40
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        go_on.set()
        while engine.num_open:
            await asyncio.sleep(0.01)

    asyncio.run(run())
    assert client.submitted == []


async def wait_until_idle(engine: AsyncEngine) -> None:
    while engine.num_open:
        await asyncio.sleep(0.01)


def test_text_waits_for_no_picture(make_engine: MakeEngine) -> None:
    engine, client = make_engine(lambda _: say([5]), max_batch_size=64)
    go_on = threading.Event()

    def prepare_slowly(*arguments: Any) -> Any:
        go_on.wait()
        return prepare_image(*arguments)

    engine.builder = replace(engine.builder, prepare=prepare_slowly)

    async def run() -> None:
        tasks = [asyncio.create_task(engine.open(PICTURE, GenerationConfig())) for _ in range(40)]
        await read(await engine.open(HELLO, GenerationConfig()))
        assert [len(request.images) for request in client.submitted] == [0]
        go_on.set()
        for task in tasks:
            await read(await task)

    asyncio.run(run())
    assert engine.num_open == 0


@pytest.mark.parametrize("name", ["open", "build"])
def test_leaving_while_pictures_are_fetched_gives_them_up(make_engine: MakeEngine, name: str) -> None:
    engine, client = make_engine(lambda _: say([5]), max_batch_size=64)

    def never_come(*_: object) -> PreparedImage:
        while True:
            check_wanted()
            time.sleep(0.01)

    engine.builder = replace(engine.builder, prepare=never_come)

    async def run() -> None:
        tasks = [asyncio.create_task(getattr(engine, name)(PICTURE, GenerationConfig())) for _ in range(40)]
        await asyncio.sleep(0.05)
        assert engine.num_open == 40
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await wait_until_idle(engine)

    asyncio.run(run())
    assert client.submitted == []


def test_what_is_being_built_when_the_drain_ends_is_told_to_come_back(make_engine: MakeEngine) -> None:
    engine, client = make_engine(lambda _: say([5]), max_batch_size=64)
    go_on = threading.Event()
    engine.builder = HookedBuilder.wrap(engine.builder, before_build=go_on.wait)

    async def run() -> None:
        # More than there are threads.
        tasks = [asyncio.create_task(engine.open(HELLO, GenerationConfig())) for _ in range(40)]
        await asyncio.sleep(0)
        await engine.drain(0.05)
        for told in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(told, CapacityError)
        go_on.set()
        await wait_until_idle(engine)

    asyncio.run(run())
    assert client.submitted == []


def test_a_drain_waits_for_bodies_on_their_way_and_gives_them_up_at_its_end(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(lambda _: say([5]))

    async def run() -> None:
        body: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        reader = asyncio.create_task(engine.until_drained(body))
        await asyncio.sleep(0)
        drain = asyncio.create_task(engine.drain(60.0))
        await asyncio.sleep(0.1)
        assert not drain.done()
        body.set_result(b"whole")
        await drain
        assert await reader == b"whole"
        reader = asyncio.create_task(engine.until_drained(asyncio.get_running_loop().create_future()))
        await asyncio.sleep(0)
        await engine.drain(0.05)
        with pytest.raises(CapacityError, match="shutting down"):
            await reader

    asyncio.run(run())


def test_the_choices_of_a_request_and_their_pictures_are_sent_at_once(make_engine: MakeEngine) -> None:
    engine, client = make_engine(lambda _: say([5]), max_batch_size=4)

    async def run() -> None:
        await read(await engine.open(PICTURE, GenerationConfig(n=3)))

    asyncio.run(run())
    assert client.batch_sizes == [3]
    assert all(request.images is client.submitted[0].images for request in client.submitted)


def test_pictures_under_way_are_bounded_by_their_bytes(make_engine: MakeEngine) -> None:
    held = threading.Event()

    def wait(_: Request) -> Sequence[StepOutput]:
        held.wait()
        return say([5])

    engine, client = make_engine(wait, max_batch_size=8, max_pixel_bytes=1)

    async def run() -> None:
        stream = await engine.open(PICTURE, GenerationConfig(n=2))  # alone, any may come
        with pytest.raises(QueueFullError, match="Pictures of"):
            await engine.open(PICTURE, GenerationConfig())
        text = await engine.open(HELLO, GenerationConfig())
        held.set()
        await read(stream)
        await read(text)
        await read(await engine.open(PICTURE, GenerationConfig()))

    asyncio.run(run())
    assert engine.num_open == 0
    assert len(client.submitted) == 4


def hold_until(held: threading.Event) -> Script:
    def wait(_: Request) -> Sequence[StepOutput]:
        held.wait(PATIENCE_S)
        return say([5])

    return wait


def test_one_keys_flood_refuses_itself_and_half_of_the_room_is_left_for_others(make_engine: MakeEngine) -> None:
    held = threading.Event()
    engine, _ = make_engine(hold_until(held), max_batch_size=4, max_queued=8, is_shared=True)

    async def run() -> None:
        flood = [await engine.open(HELLO, GenerationConfig(), "a") for _ in range(6)]
        with pytest.raises(QueueFullError, match=r"6 answers of this API key .* other keys") as refusal:
            await engine.open(HELLO, GenerationConfig(), "a")
        assert refusal.value.status == 429
        others = [await engine.open(HELLO, GenerationConfig(), name) for name in "bcdefg"]
        with pytest.raises(QueueFullError, match="12 answers are under way"):
            await engine.open(HELLO, GenerationConfig(), "h")
        held.set()
        for stream in flood + others:
            await read(stream)
        await read(await engine.open(HELLO, GenerationConfig(n=12), "a"))  # alone, a request may take it all

    asyncio.run(run())
    assert engine.num_open == 0


@pytest.mark.parametrize(("is_shared", "namespace"), [(False, "a"), (False, "")])
def test_who_shares_with_nobody_may_fill_the_queue(make_engine: MakeEngine, is_shared: bool, namespace: str) -> None:
    held = threading.Event()
    engine, _ = make_engine(hold_until(held), max_batch_size=4, max_queued=8, is_shared=is_shared)

    async def run() -> None:
        streams = [await engine.open(HELLO, GenerationConfig(), namespace) for _ in range(12)]
        held.set()
        for stream in streams:
            await read(stream)

    asyncio.run(run())


def test_pictures_count_as_their_tiles_and_pixels_and_not_as_one_request(make_engine: MakeEngine) -> None:
    held = threading.Event()
    num_bytes = len(prepare_image(picture_path(), TilingParameters()).pixels)
    engine, _ = make_engine(
        hold_until(held), max_batch_size=4, max_queued=60, max_pixel_bytes=4 * num_bytes, is_shared=True
    )

    async def run() -> None:
        flood = [await engine.open(PICTURE, GenerationConfig(), "a") for _ in range(2)]
        with pytest.raises(QueueFullError, match=r"Pictures of \d+ MiB of this API key"):
            await engine.open(PICTURE, GenerationConfig(), "a")
        flood += [
            await engine.open(HELLO, GenerationConfig(), "a"),
            await engine.open(PICTURE, GenerationConfig(), "b"),
        ]
        held.set()
        for stream in flood:
            await read(stream)
        await read(await engine.open(PICTURE, GenerationConfig(), "a"))

    asyncio.run(run())
    assert engine.num_open == 0


def test_long_prompts_count_as_their_tokens_and_not_as_one_request(make_engine: MakeEngine) -> None:
    held = threading.Event()
    engine, client = make_engine(hold_until(held), max_batch_size=1, max_queued=100, is_shared=True)
    model = engine.builder.model
    many = parse_prompt(("look", [str(picture_path())] * 4))
    most = 101 * (model.max_dynamic_patch + 1) * (model.tokens_per_tile + count_tile_work(model))

    def count_work(request: Request) -> int:
        return len(request.token_ids) + sum(image.num_tiles for image in request.images) * count_tile_work(model)

    async def run() -> None:
        flood, refusal = list[Stream](), ""
        while not refusal:
            try:
                flood.append(await engine.open(many, GenerationConfig(), "a"))
            except QueueFullError as error:
                refusal = str(error)
        assert re.match(r"Prompts of \d+ tokens .* of this API key", refusal)
        work = sum(map(count_work, client.submitted))
        assert most - 2 * count_work(client.submitted[0]) < 2 * work <= most
        flood.append(await engine.open(many, GenerationConfig(), "b"))
        held.set()
        for stream in flood:
            await read(stream)
        await read(await engine.open(many, GenerationConfig(), "a"))

    asyncio.run(run())
    assert engine.num_open == 0


def test_pictures_of_one_keys_slow_hosts_leave_threads_for_others(make_engine: MakeEngine) -> None:
    engine, client = make_engine(lambda _: say([5]), max_batch_size=200, is_shared=True)
    go_on = threading.Event()
    builder = engine.builder

    def prepare_slowly(*arguments: Any) -> Any:
        go_on.wait(PATIENCE_S)
        return prepare_image(*arguments)

    async def run() -> None:
        engine.builder = replace(builder, prepare=prepare_slowly)
        slow = [asyncio.create_task(engine.open(PICTURE, GenerationConfig(), "a")) for _ in range(40)]
        while engine.num_open < 40:
            await asyncio.sleep(0.01)
        engine.builder = builder
        await read(await engine.open(PICTURE, GenerationConfig(), "b"))
        assert [request.namespace for request in client.submitted] == ["b"]
        go_on.set()
        for task in slow:
            await read(await task)

    asyncio.run(run())
    assert engine.num_open == 0


def test_an_answer_that_cannot_be_read_fails_its_stream_alone(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(lambda _: say([5]))
    builder = engine.builder

    def fail() -> None:
        raise KeyError("a fault of ours")

    async def run() -> None:
        engine.builder = HookedBuilder.wrap(builder, before_token=fail)
        with pytest.raises(EngineError, match="log"):
            await read(await engine.open(HELLO, GenerationConfig()))
        engine.builder = builder
        assert await read(await engine.open(HELLO, GenerationConfig())) == [(0, "length")]

    asyncio.run(run())
    assert engine.num_open == 0


def test_an_answer_that_the_server_aborts_is_no_whole_one(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(lambda _: [StepOutput("", (5,)), StepOutput("", finish_reason=FinishReason.ABORT)])

    async def run() -> None:
        with pytest.raises(CapacityError, match="shutting down"):
            await read(await engine.open(HELLO, GenerationConfig()))

    asyncio.run(run())


def test_what_is_said_after_its_loop_has_ended_holds_up_no_later_one(make_engine: MakeEngine) -> None:
    go_on = threading.Event()

    def wait(_: Request) -> Sequence[StepOutput]:
        go_on.wait()
        return say([5, 6])

    engine, _ = make_engine(wait)

    async def leave() -> None:
        (await engine.open(HELLO, GenerationConfig())).close()

    asyncio.run(leave())
    go_on.set()
    while engine.num_open:
        time.sleep(0.01)

    async def ask() -> list[tuple[int, str | None]]:
        return await read(await engine.open(HELLO, GenerationConfig()))

    assert asyncio.run(ask()) == [(0, None), (0, "length")]


def test_a_stalled_loop_is_woken_once_for_all_that_came_meanwhile(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(lambda _: say([5] * 50))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        woken, wake = list[Callable[..., object]](), loop.call_soon_threadsafe

        def count(callback: Callable[..., object], *arguments: Any, **options: Any) -> asyncio.Handle:
            if getattr(callback, "__self__", None) is engine.mailbox:
                woken.append(callback)
            return wake(callback, *arguments, **options)

        loop.call_soon_threadsafe = count  # type: ignore[method-assign]
        stream = await engine.open(HELLO, GenerationConfig())
        while engine.num_open:  # the loop stands still while the engine's thread says all
            time.sleep(0.01)
        assert len(await read(stream)) == 50
        assert len(woken) <= 2  # once before `open` returned, perhaps

    asyncio.run(run())


def test_it_takes_nothing_while_it_loads_drains_or_is_dead(make_engine: MakeEngine) -> None:
    engine, client = make_engine(lambda _: say([5]))
    loading = AsyncEngine(engine.builder)
    assert (loading.is_healthy, loading.is_ready) == (True, False)
    with pytest.raises(CapacityError, match="loading"):
        loading.check_room()
    client.is_dead = True
    assert (engine.is_healthy, engine.is_ready) == (False, False)
    with pytest.raises(CapacityError, match="stopped"):
        engine.check_room()
    client.is_dead = False
    asyncio.run(engine.drain(1.0))
    assert (engine.is_healthy, engine.is_ready) == (True, False)
    with pytest.raises(CapacityError, match="shutting down"):
        engine.check_room()
