"""What becomes of an answer's unsent rest once its connection is closed."""

import asyncio

import pytest

from tests.processes import PATIENCE_S
from tilewise.serving.http.linger import LingeringTransport, LingerLimits


class Link(asyncio.Transport):
    """A transport whose client reads as `sizes` say: what is unsent, look by look, and then no more."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.is_aborted = asyncio.Event()

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self.is_aborted.set()

    def get_write_buffer_size(self) -> int:
        return self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0]


@pytest.mark.parametrize("sizes", [(9,), (9, 9), (9, 5, 5, 2, 2, 2)])
def test_a_client_that_reads_on_is_waited_for_and_one_that_has_stopped_is_dropped(sizes: tuple[int, ...]) -> None:
    async def run() -> None:
        link = Link(*sizes)
        LingeringTransport(link, LingerLimits(stalled_s=0.001), lambda: False, lambda: None).close()
        await asyncio.wait_for(link.is_aborted.wait(), PATIENCE_S)
        assert len(link.sizes) == 1, "every look before the last found that it had read"

    asyncio.run(run())


def test_what_was_read_to_its_end_is_dropped_by_nobody() -> None:
    async def run() -> None:
        link = Link(9, 4, 4, 0)
        LingeringTransport(link, LingerLimits(stalled_s=0.001), lambda: False, lambda: None).close()
        while len(link.sizes) > 1:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)  # longer than a look takes to come
        assert not link.is_aborted.is_set()

    asyncio.run(run())


def test_a_connection_is_closed_once_however_often_it_is_finished() -> None:
    class OnceClosed(Link):
        num_closes = 0

        def is_closing(self) -> bool:
            return self.num_closes > 0

        def close(self) -> None:
            self.num_closes += 1

    async def run() -> None:
        link = OnceClosed(0)
        lingering = LingeringTransport(link, LingerLimits(), lambda: False, lambda: None)
        lingering.finish()
        lingering.finish()
        assert link.num_closes == 1

    asyncio.run(run())
