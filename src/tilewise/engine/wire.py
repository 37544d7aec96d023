"""One end of the sockets between a client and its engine's process: a way in and a way out, below a private folder.

Each end binds its own way in and connects to the other's, so that another process that connects can only add messages,
never take one; the mode of the socket and its folder keeps other users out. Nothing is unpickled.
"""

import logging
import threading
from pathlib import Path
from typing import Generic

import zmq
from msgspec.msgpack import Decoder

from tilewise.engine.messages import Kind, Message, Report, decode, encode
from tilewise.errors import EngineError

logger = logging.getLogger(__name__)


class Wire(Generic[Kind]):
    """Sends from any thread, receives on one. No call waits for the other end: what is sent waits in memory."""

    def __init__(self, folder: Path, *, listen: str, speak: str, decoder: Decoder[Kind]) -> None:
        """Bind socket `listen` in `folder`; `speak` is the one that the other end binds, now or later.

        Raises:
            EngineError: no socket can be bound there.
        """
        self._decoder = decoder
        self._lock = threading.Lock()
        # A thread for each direction: one that sends the 147 MB of a large picture does nothing else for 70 ms (H200's
        # host, 2026-11-30).
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=2)
        self._inbound, self._outbound = self._context.socket(zmq.PULL), self._context.socket(zmq.PUSH)
        for thread, socket in enumerate((self._inbound, self._outbound)):
            socket.set_hwm(0)
            socket.set(zmq.AFFINITY, 1 << thread)
        try:
            self._inbound.bind(f"ipc://{folder / listen}")
            (folder / listen).chmod(0o600)
            self._outbound.connect(f"ipc://{folder / speak}")
        except (zmq.ZMQError, OSError) as error:
            self.close()
            raise EngineError(
                f"No local socket could be opened for the engine ({error.strerror}); let TMPDIR name a folder with a "
                "short path that can be written."
            ) from None

    def send(self, message: Message | Report) -> None:
        """Send, in the order of calls; on a closed wire this does nothing.

        Raises:
            InputError: the message cannot be encoded.
        """
        frames = encode(message)
        with self._lock:
            if not self._outbound.closed:
                self._outbound.send_multipart(frames, copy=False)

    def receive(self, timeout_s: float) -> Kind | None:
        """Return the next message, or None where none comes in time; junk is dropped and logged."""
        self._inbound.rcvtimeo = round(timeout_s * 1000)
        while True:
            try:
                frames = [frame.buffer for frame in self._inbound.recv_multipart(copy=False)]
            except zmq.Again:
                return None
            try:
                return decode(self._decoder, frames)
            except Exception as error:  # no parser's list of errors on hostile bytes is complete
                logger.warning("dropped %d bytes that are no message: %s", sum(map(len, frames)), type(error).__name__)

    def close(self, linger_s: float = 0.0) -> None:
        """Close on the thread that receives, or once it does not; wait so long for what is not sent yet."""
        with self._lock:
            self._context.destroy(linger=round(linger_s * 1000))
