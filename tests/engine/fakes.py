"""Engines that do what a script says, on a thread or as `python -m tests.engine.fakes` in a process of their own."""

import hashlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DeviceConfig, EngineConfig, ResolvedConfig, resolve
from tilewise.demo import model_folder
from tilewise.engine.client import EngineClient
from tilewise.engine.in_process import InProcessClient
from tilewise.engine.messages import Message, Shutdown, Start, Submit
from tilewise.engine.process import serve
from tilewise.engine.process_client import ProcessClient
from tilewise.errors import ConfigError
from tilewise.types import FinishReason, Request, StepOutput

WAIT_S = 300
NUM_STEPS = 50
Emit = Callable[[Sequence[StepOutput]], None]


def answer_five(request: Request, emit: Emit) -> None:
    for number in range(5):
        emit([StepOutput(request.request_id, (number,), finish_reason=FinishReason.STOP if number == 4 else None)])


def stay_silent(request: Request, emit: Emit) -> None:
    pass


def crash(request: Request, emit: Emit) -> None:
    raise RuntimeError("at address 0x7f00")


def answer_done(request: Request, emit: Emit) -> None:
    if request.request_id == "done":
        answer_five(request, emit)


def wait_at_gate(request: Request, emit: Emit) -> None:
    """Say a first word, then wait for the file that the request's namespace names."""
    emit([StepOutput(request.request_id)])
    while not Path(request.namespace).exists():
        time.sleep(0.01)


def crash_at_gate(request: Request, emit: Emit) -> None:
    wait_at_gate(request, emit)
    raise RuntimeError


def answer_at_gate(request: Request, emit: Emit) -> None:
    wait_at_gate(request, emit)
    answer_five(request, emit)


def hash_pixels(request: Request, emit: Emit) -> None:
    hashes = " ".join(hashlib.sha256(image.pixels).hexdigest() for image in request.images)
    emit([StepOutput(request.request_id, finish_reason=FinishReason.STOP, error=hashes)])


SCRIPTS = {
    script.__name__: script
    for script in (
        answer_five,
        stay_silent,
        crash,
        answer_done,
        wait_at_gate,
        crash_at_gate,
        answer_at_gate,
        hash_pixels,
    )
}


class FakeCore:
    """Hands every request to a script until told to shut down.

    An abort of a running request ends it with all that was received until then as its error. An abort of `all` lets
    every running request answer in steps that they share.
    """

    def __init__(self, script: str) -> None:
        self.script = SCRIPTS[script]
        self.received: list[str] = []
        self.running: list[str] = []
        self.is_closed = False

    def run_forever(self, inbox: "queue.SimpleQueue[Message]", emit: Emit) -> None:
        while not isinstance(message := inbox.get(), Shutdown):
            if isinstance(message, Submit):
                for request in message.requests:
                    self.received.append(f"submit {request.request_id}")
                    self.running.append(request.request_id)
                    self.script(request, emit)
            elif message.request_id == "all":
                self.answer_together(emit)
            else:
                self.received.append(f"abort {message.request_id}")
                if message.request_id in self.running:
                    text = ", ".join(self.received)
                    emit([StepOutput(message.request_id, finish_reason=FinishReason.ABORT, error=text)])

    def answer_together(self, emit: Emit) -> None:
        for step in range(NUM_STEPS):
            reason = FinishReason.LENGTH if step == NUM_STEPS - 1 else None
            emit([StepOutput(request_id, (step,), finish_reason=reason) for request_id in self.running])

    def stats(self) -> dict[str, float]:
        return {"messages": len(self.received)}

    def close(self) -> None:
        self.is_closed = True


class Heard:
    """A sink that keeps what it is told; `ended` is set by an output with a finish reason."""

    def __init__(self) -> None:
        self.outputs: list[StepOutput] = []
        self.threads: set[str] = set()
        self.started, self.ended = threading.Event(), threading.Event()

    def __call__(self, output: StepOutput) -> None:
        self.outputs.append(output)
        self.threads.add(threading.current_thread().name)
        self.started.set()
        if output.finish_reason is not None:
            self.ended.set()

    @property
    def reasons(self) -> list[FinishReason]:
        return [output.finish_reason for output in self.outputs if output.finish_reason is not None]


def make_start(script: str) -> Start:
    return Start(script, load_model_config(model_folder()), {"device": "cpu", "session_len": 99}, 0)


def start_process(script: str, **options: float) -> ProcessClient:
    return ProcessClient(make_start(script), "tests.engine.fakes", **options)


def start_thread(script: str) -> InProcessClient:
    return InProcessClient(FakeCore(script))


TRANSPORTS: dict[str, Callable[[str], EngineClient]] = {"thread": start_thread, "process": start_process}


def build(start: Start) -> tuple[FakeCore, ResolvedConfig]:
    if start.folder == "refuse":
        raise ConfigError("session_len=99 is odd; choose an even one.", param="session_len")
    if start.folder == "break":
        raise RuntimeError("at address 0x7f00")
    if start.folder == "die":
        os._exit(3)
    if start.folder == "interrupt the parent":
        os.kill(os.getppid(), signal.SIGINT)
        threading.Event().wait()
    if start.folder == "load forever":
        sys.stderr.write("loading\n")
        threading.Event().wait()
    resolved = resolve(EngineConfig.from_options(start.options), start.model, DeviceConfig("cpu"))
    return FakeCore(start.folder), resolved


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1]), build))
