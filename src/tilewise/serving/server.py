"""`tilewise serve api_server`: an engine in its own process, and the application in front of it.

The socket is bound before anything is loaded, so that /health and /ready answer meanwhile. SIGTERM and Ctrl-C take
no more requests, let running ones finish, and end with status 0; a second one ends at once. Without its engine the
server ends with status 1, once clients are told, so that a process that watches it can start it again.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tilewise.config import ChatTemplateConfig, EngineConfig
from tilewise.demo import model_folder
from tilewise.engine.launch import Checkpoint, Engine, find_checkpoint, launch_engine
from tilewise.errors import ConfigError, EngineError
from tilewise.serving.config import ServerConfig
from tilewise.serving.log import set_up_logging
from tilewise.serving.memory import give_back_large_blocks
from tilewise.threads import DaemonThreads

if TYPE_CHECKING:
    import uvicorn

    from tilewise.serving.async_engine import AsyncEngine

logger = logging.getLogger(__name__)

_DRAIN_S = 30.0
_POLL_S = 0.1
_LAST_WORDS_S = 5
_KEEP_ALIVE_S = 30


def run_server(
    model: str | None,
    config: EngineConfig,
    server: ServerConfig,
    chat_template: ChatTemplateConfig | None = None,
    log_level: str = "INFO",
    **pictures: Any,
) -> None:
    """Serve until told to end. What is wrong with settings or folder is told before any weight is read.

    Raises:
        EngineError: the engine ended by itself.
        ConfigError: a setting is refused, or the address cannot be bound.
        CheckpointError: the model cannot be found or served.
        CapacityError: the device is too small.
    """
    try:
        import uvicorn

        from tilewise.serving.async_engine import AsyncEngine
        from tilewise.serving.http.body_memory import BodyMemory
        from tilewise.serving.http.connections import create_protocol
        from tilewise.serving.openai.app import create_app
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'tilewise[server]'.") from None
    from tilewise.config import read_log_level
    from tilewise.inputs.request_builder import create_builder
    from tilewise.serving.service import Service

    set_up_logging(read_log_level(log_level), server.log_format)
    keys = server.read_keys()
    body_memory = BodyMemory(server.body_memory_bytes, server.min_body_bytes_per_s, is_shared=len(keys) > 1)
    protocol = create_protocol(server.max_connections, server.create_tls(), body_memory=body_memory)
    checkpoint = find_checkpoint(model, config)
    builder = create_builder(checkpoint.folder, checkpoint.model, chat_template, **pictures)
    policy = replace(builder.policy, allowed_local_media_path=server.allowed_local_media_path)
    is_demo = checkpoint.folder.resolve() == model_folder().resolve()
    name = server.model_name or _name_model(model, checkpoint, is_demo=is_demo)
    builder = replace(builder, policy=policy)
    engine = AsyncEngine(builder, max_queued=server.max_queued, is_shared=len(keys) > 1, model_name=name)
    settings = uvicorn.Config(
        create_app(Service(engine, name, keys, server.allow_origins, is_demo)),
        # Pinned, so that limits and figures hold wherever other loops and parsers happen to be installed.
        loop="asyncio",
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
    listener = bind(server)
    _tell_address(server, listener, name, has_keys=bool(keys))
    launch = partial(launch_engine, checkpoint, config, in_process=False, num_tokens=builder.tokenizer.vocab_size)
    asyncio.run(_serve(uvicorn.Server(settings), listener, engine, launch))


async def _serve(
    server: "uvicorn.Server", listener: socket.socket, engine: "AsyncEngine", launch: Callable[[], Engine]
) -> None:
    give_back_large_blocks()
    loop = asyncio.get_running_loop()
    # A daemon: loading cannot be interrupted, and must not keep a process that was told to end.
    loaded = asyncio.wrap_future(DaemonThreads(1, "tilewise-load").submit(launch))

    async def attach() -> None:
        launched = await loaded
        engine.attach(launched)
        logger.info("ready")
        while launched.client.is_alive():
            await asyncio.sleep(_POLL_S)
        if not engine.is_draining:
            await engine.drain(_LAST_WORDS_S)  # open answers have got their error by then
            raise EngineError("The engine's process ended, and the server with it; start it again.")

    async def end() -> None:
        logger.info("shutting down: running answers may finish")
        await engine.drain(_DRAIN_S)
        await asyncio.to_thread(engine.close)
        server.should_exit = True

    endings: list[asyncio.Task[None]] = []

    def on_signal(sig: int, frame: FrameType | None) -> None:
        if endings:
            server.should_exit = server.force_exit = True
        else:
            loop.call_soon_threadsafe(lambda: endings.append(loop.create_task(end())))

    server.handle_exit = on_signal
    serving, attaching = asyncio.create_task(server.serve([listener])), asyncio.create_task(attach())
    await asyncio.wait((serving, attaching), return_when=asyncio.FIRST_COMPLETED)
    if not serving.done() and attaching.exception() is not None:
        server.should_exit = True
    try:
        await serving
    finally:
        await asyncio.to_thread(engine.close)
        attaching.cancel()
    if attaching.done() and not attaching.cancelled():
        attaching.result()


def _name_model(model: str | None, checkpoint: Checkpoint, *, is_demo: bool) -> str:
    """What clients call it: a hub id as it is, a folder by its last part, the embedded model by a name of its own."""
    if is_demo:
        return "tilewise-demo"
    return checkpoint.folder.resolve().name if model is None or Path(model).exists() else model


def bind(server: ServerConfig) -> socket.socket:
    """A socket that listens where the server is to answer.

    Raises:
        ConfigError: the address cannot be bound, or what was handed over does not listen.
    """
    listener = _open(server) if server.server_fd is None else _take(server.server_fd)
    # NOTE: asyncio does so for sockets that it made itself; without it each event waits for the last one's receipt,
    # which a client may hold back for 40 ms. What is accepted inherits it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _open(server: ServerConfig) -> socket.socket:
    try:
        family = socket.getaddrinfo(server.server_name, server.server_port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((server.server_name, server.server_port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"{server.server_name}:{server.server_port} cannot be bound ({error.strerror}); choose another "
            "--server-port, or --server-name.",
            param="server_port",
        ) from None


def _take(descriptor: int) -> socket.socket:
    with contextlib.suppress(OSError):
        listener = socket.socket(fileno=descriptor)
        is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if is_listening and listener.family in (socket.AF_INET, socket.AF_INET6):
            return listener
        listener.detach()  # not ours to close
    raise ConfigError(f"server_fd={descriptor} is no TCP socket that listens.", param="server_fd")


def _tell_address(server: ServerConfig, listener: socket.socket, name: str, *, has_keys: bool) -> None:
    host, port = listener.getsockname()[:2]
    scheme = "https" if server.ssl_certfile else "http"
    shown = f"[{host}]" if ":" in host else host
    if not ipaddress.ip_address(host).is_loopback and not has_keys:
        logger.warning(
            "NO API KEY, AND THE ADDRESS %s IS OPEN TO OTHER MACHINES: whoever reaches it may use this server. Set "
            "TILEWISE_API_KEYS or --api-keys-file, or leave --server-name at 127.0.0.1.",
            host,
        )
    logger.info("serving %s at %s://%s:%d/v1", name, scheme, shown, port)
