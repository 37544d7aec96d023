"""`tilewise serve gradio`: the page, over a server that is there or over one of its own, from start to end.

The page's own server is a child on a port of loopback with a key that nobody else has, and ends with this process,
however this one ends. Pictures that visitors upload lie in a folder of this process, and go with it.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from tilewise.child_process import child_command, child_environment
from tilewise.client import APIClient, is_loopback
from tilewise.errors import ConfigError, EngineError
from tilewise.page.app import create_page, launch_page

_DEFAULT_SERVER = "http://127.0.0.1:23333"
_POLL_S = 0.2
_DRAIN_S = 35.0


def run_page(
    server_url: str | None, api_key: str | None, launch: dict[str, Any], model: str | None, server_flags: Sequence[str]
) -> None:
    """Serve the page until told to end: over `server_url`, or over a server of its own with `model` and its flags.

    Raises:
        ConfigError: the page's port is taken.
        EngineError: the page's own server ended.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        os.environ["GRADIO_TEMP_DIR"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="tilewise-page-"))
        process = None
        if server_url is None:
            client, process = stack.enter_context(_serve_model(([] if model is None else [model]) + [*server_flags]))
        else:
            client = APIClient(server_url, api_key)
        blocks = create_page(client, model=model, code_url=None if process is None else _DEFAULT_SERVER)
        try:
            address = launch_page(blocks, **launch)
        except OSError as error:
            raise ConfigError(f"The page's port cannot be opened: {error}. Choose another --server-port.") from None
        stack.callback(blocks.close, verbose=False)
        if launch["is_shared"] or not is_loopback(launch["server_name"]):
            print("OTHER MACHINES CAN REACH THIS PAGE, AND NOBODY IS ASKED FOR A PASSWORD.", file=sys.stderr)
        print(f"Open {address}", file=sys.stderr, flush=True)
        while process is None or process.poll() is None:
            time.sleep(_POLL_S)
        raise EngineError("The page's own server ended; its last lines say why.")


@contextmanager
def _serve_model(flags: Sequence[str]) -> Generator[tuple[APIClient, "subprocess.Popen[bytes]"]]:
    """An API server for this page alone: a port of loopback, and a key that nobody else has."""
    key = secrets.token_urlsafe(24)
    # The socket itself is handed over: a port that is free for a moment may be taken by a process that wants the key.
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port, descriptor = listener.getsockname()[1], listener.fileno()
        command = child_command("tilewise.page.child", "serve", "api_server")
        process = subprocess.Popen(
            [*command, *flags, f"--server-fd={descriptor}"],
            env={**child_environment(with_secrets=True), "TILEWISE_API_KEYS": key},
            stdin=subprocess.PIPE,  # held open: its end tells the child that this process is gone
            pass_fds=(descriptor,),
        )
    client = APIClient(f"http://127.0.0.1:{port}", key)
    try:
        while not client.is_ready():
            if process.poll() is not None:
                raise EngineError("The model cannot be served; the lines above say why.")
            time.sleep(_POLL_S)
        yield client, process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_DRAIN_S)
        process.kill()  # which does nothing to one that has ended
        process.communicate()  # closes stdin, and waits
