"""ASGI middleware that takes uploads in gradio's place, and notices when a visitor's session begins and ends.

A picture is judged and counted while its bytes come in, and a refused upload leaves nothing behind. A visitor is known
by a cookie of the page and has a session while one of the page's heartbeats that carry it is open. Gradio's own route
would write first, keep everything, and remember every upload's name for ever.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse

from tilewise.page.form import UploadForm
from tilewise.page.uploads import UNSAFE_IN_NAMES, Sender, UploadLimits, UploadRefusedError, Uploads

_UPLOAD = "/gradio_api/upload"
_HEARTBEAT = "/gradio_api/heartbeat/"
# Where the page's script asks whether its heartbeat has come through.
SESSION = "/tilewise/session"
# Where browsers and gradio's own client come in first.
_ENTRANCES = ("/", "/config", "/config/")
VISITOR = "tilewise-visitor"
LANGUAGE = "tilewise-language"
_VISITOR_ID = re.compile(r"[0-9a-f]{32}")
_DISCONNECT = {"type": "http.disconnect"}


class Intake:
    """Stands before `app`; what is no upload passes through, with a bounded body."""

    def __init__(self, app: Any, uploads: Uploads, words: Mapping[str, Mapping[str, str]]) -> None:
        """`words` are the page's, a mapping for each language."""
        self._app = app
        self._uploads = uploads
        self._limits = uploads.limits
        self._words = words
        self._json_bytes: Counter[str] = Counter()  # by address
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                self._stop()
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visitor = _read_visitor(scope)
        has_session = self._uploads.has_open_session(visitor)
        if scope["path"] == _UPLOAD and scope["method"] == "POST":
            await self._answer_upload(scope, receive, send)
        elif scope["path"] == SESSION:
            answer = PlainTextResponse("open" if has_session else "closed", 200, {"cache-control": "no-store"})
            await answer(scope, receive, send)
        elif scope["path"].startswith(_HEARTBEAT) and visitor is not None:
            await self._hold_session(visitor, scope, receive, send)
        else:
            await self._answer_other(scope, receive, send)

    async def _hold_session(self, visitor: str, scope: Any, receive: Any, send: Any) -> None:
        self._uploads.open_session(visitor)
        try:
            await self._app(scope, receive, send)
        finally:
            self._uploads.close_session(visitor)
            self._expire()

    async def _answer_other(self, scope: Any, receive: Any, send: Any) -> None:
        body = _Body(receive, self._limits)
        address = _read_address(scope)
        is_new = scope["path"] in _ENTRANCES and _read_visitor(scope) is None

        async def receive_bounded() -> Any:
            if body.is_whole:
                return await receive()
            try:
                message = await body.receive()
            except TimeoutError:
                return _DISCONNECT
            num_bytes = len(message.get("body", b""))
            self._json_bytes[address] += num_bytes
            return message if self._find_excess(address, body.num_bytes, 0) is None else _DISCONNECT

        async def send_with_cookie(message: Any) -> None:
            if is_new and message["type"] == "http.response.start":
                cookie = f"{VISITOR}={token_hex(16)}; Path=/; HttpOnly; SameSite=Lax"
                message["headers"] = [*message["headers"], (b"set-cookie", cookie.encode())]
            await send(message)

        excess = self._find_excess(address, 0, _read_length(scope))
        if excess is not None:
            await self._refuse(excess, "", scope, receive, send, is_whole=False)
            return
        try:
            await self._app(scope, receive_bounded, send_with_cookie)
        finally:
            self._json_bytes[address] -= body.num_bytes
            if not self._json_bytes[address]:
                del self._json_bytes[address]

    def _find_excess(self, address: str, num_bytes: int, num_more: int) -> UploadRefusedError | None:
        """Why a request of so many bytes, with some more to come, is refused."""
        limits = self._limits
        if num_bytes + num_more > limits.json_bytes:
            return UploadRefusedError(413, "upload_text")
        is_address_full = self._json_bytes[address] + num_more > limits.address_json_bytes
        if is_address_full or self._json_bytes.total() + num_more > limits.all_json_bytes:
            return UploadRefusedError(503, "CapacityError")
        return None

    async def _answer_upload(self, scope: Any, receive: Any, send: Any) -> None:
        sender = Sender(_read_address(scope), _read_visitor(scope))
        body = _Body(receive, self._limits)
        form: UploadForm | None = None
        try:
            form = UploadForm(self._uploads, sender, HTTPConnection(scope).headers.get("content-type"))
            await self._read_form(body, form)
            answer = JSONResponse(form.keep())
        except UploadRefusedError as refused:
            name = ""
            if form is not None:
                name = form.name
                form.drop()  # before anybody is told
            await self._drain(body)
            await self._refuse(refused, name, scope, receive, send, is_whole=body.is_whole)
        else:
            await answer(scope, receive, send)
        finally:
            if form is not None:
                form.drop()  # also where the visitor has left
            self._expire()

    async def _read_form(self, body: "_Body", form: UploadForm) -> None:
        """Write the pictures of a whole form.

        Raises:
            UploadRefusedError: a picture is not kept, the form is not whole, too large, or too slow.
        """
        try:
            while not body.is_whole:
                message = await body.receive()
                if message["type"] == "http.disconnect":
                    raise UploadRefusedError(400, "upload_form")
                if body.num_bytes > self._limits.request_bytes:
                    raise UploadRefusedError(413, "upload_session")
                await asyncio.to_thread(form.write, message.get("body", b""))
        except TimeoutError:
            raise UploadRefusedError(400, "upload_slow") from None

    async def _drain(self, body: "_Body") -> None:
        """Read a refused upload on, up to a bound: a browser reads no answer before it has sent everything."""
        try:
            while not body.is_whole and body.num_bytes <= self._limits.request_bytes:
                await body.receive()
        except TimeoutError:
            return

    async def _refuse(
        self, refused: UploadRefusedError, name: str, scope: Any, receive: Any, send: Any, *, is_whole: bool
    ) -> None:
        is_chinese = HTTPConnection(scope).cookies.get(LANGUAGE, "").startswith("zh")
        words, limits = self._words["zh-CN" if is_chinese else "en"], self._limits
        text = words[refused.word].format(
            picture_mb=limits.image.max_bytes >> 20,
            session_mb=limits.session_bytes >> 20,
            files=limits.session_files,
            minutes=round(limits.grace_s / 60),
        )
        if name:
            text = f"{UNSAFE_IN_NAMES.sub('', name)[:80]}: {text}"
        headers = {"cache-control": "no-store"}
        if not is_whole:
            headers["connection"] = "close"  # so that uvicorn does not read it to its end
        await PlainTextResponse(text, refused.status, headers)(scope, receive, send)

    def _expire(self) -> None:
        """Take away what is over, and set a timer for what comes next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait_s = self._uploads.expire()
        if wait_s is not None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._expire)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._uploads.close()


class _Body:
    """A request's body as it comes, at the least rate or faster."""

    def __init__(self, receive: Any, limits: UploadLimits) -> None:
        now = asyncio.get_running_loop().time()
        self._receive = receive
        self._limits = limits
        self._ends_at = now + limits.request_s
        self._slow_at = now + limits.patience_s
        self.num_bytes = 0
        self.is_whole = False  # or the client is gone

    async def receive(self) -> Any:
        """The next message.

        Raises:
            TimeoutError: it does not come in time.
        """
        async with asyncio.timeout_at(min(self._ends_at, self._slow_at)):
            message = await self._receive()
        num_bytes = len(message.get("body", b""))
        now = asyncio.get_running_loop().time()
        gained_s = num_bytes / self._limits.min_bytes_per_s
        self._slow_at = min(self._slow_at + gained_s, now + self._limits.patience_s)
        self.num_bytes += num_bytes
        self.is_whole = not message.get("more_body", False)
        return message


def _read_address(scope: Any) -> str:
    client = HTTPConnection(scope).client
    return "" if client is None else client.host


def _read_length(scope: Any) -> int:
    """How many bytes a request says that it has."""
    announced = HTTPConnection(scope).headers.get("content-length", "")
    return int(announced[:20]) if announced.isdecimal() else 0


def _read_visitor(scope: Any) -> str | None:
    """The visitor's cookie, where it has the form that the page gives it."""
    visitor = HTTPConnection(scope).cookies.get(VISITOR, "")
    return visitor if _VISITOR_ID.fullmatch(visitor) else None
