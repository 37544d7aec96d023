"""What becomes of a request's pictures in a server's metrics."""

import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("prometheus_client", reason="the server's extra is not installed")
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import PATIENCE_S
from tilewise.demo import picture_path
from tilewise.errors import ImageError, ImageFetchError
from tilewise.inputs.media.fetch_context import use_fetch_context
from tilewise.inputs.media.policy import ImageLimits, ImagePolicy
from tilewise.inputs.media.sources import load_image
from tilewise.serving.metrics import Metrics

POLICY = ImagePolicy(allowed_media_hosts=("127.0.0.1",))
HASTY = ImagePolicy(ImageLimits(fetch_timeout_s=0.2), allowed_media_hosts=("127.0.0.1",))


def read(metrics: Metrics) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def count(metrics: Metrics) -> tuple[float, float, float]:
    """Builds, fetched and decoded pictures."""
    told = read(metrics)
    names = ("build", "picture_fetch", "picture_decode")
    return tuple(told[f"tilewise:{name}_seconds_count"] for name in names)  # type: ignore[return-value]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("m", dict)


@pytest.fixture
def host() -> Iterator[str]:
    """One that gives the sample picture to its first visitor, and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + picture_path().read_bytes())

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        thread.join()


@contextmanager
def building(metrics: Metrics) -> Generator[None]:
    with metrics.build_s.time(), use_fetch_context(PATIENCE_S, lambda: True, metrics.observe_stage):
        yield


def test_fetching_and_decoding_are_timed_apart(metrics: Metrics, host: str) -> None:
    with building(metrics):
        load_image(host, POLICY)
    assert count(metrics) == (1, 1, 1)
    with building(metrics):
        load_image(picture_path(), POLICY)
        load_image(picture_path(), POLICY)
    assert count(metrics) == (2, 1, 3)
    told = read(metrics)
    parts = told["tilewise:picture_fetch_seconds_sum"] + told["tilewise:picture_decode_seconds_sum"]
    assert 0 < parts <= told["tilewise:build_seconds_sum"]


def test_what_fails_is_timed_too(metrics: Metrics, host: str) -> None:
    load_image(host, POLICY)
    with building(metrics), pytest.raises(ImageFetchError):
        load_image(host, HASTY)
    with building(metrics), pytest.raises(ImageError):
        load_image(b"no picture", POLICY)
    assert count(metrics) == (2, 1, 1)
    assert read(metrics)["tilewise:picture_fetch_seconds_sum"] >= HASTY.limits.fetch_timeout_s


def test_servers_of_one_process_count_their_own_pictures(metrics: Metrics) -> None:
    other = Metrics("other", dict)
    inside, outside = threading.Event(), threading.Event()

    def build() -> None:
        with building(other):
            inside.set()
            assert outside.wait(PATIENCE_S)

    thread = threading.Thread(target=build)
    thread.start()
    assert inside.wait(PATIENCE_S)
    with building(metrics):
        load_image(picture_path(), POLICY)
    load_image(picture_path(), POLICY)  # nobody's
    outside.set()
    thread.join()
    assert count(metrics) == (1, 0, 1)
    assert count(other) == (1, 0, 0)
