"""ASGI middleware that takes uploads in gradio's place, and notices when a visitor's session begins and ends.

A picture is judged and counted while its bytes come in, and a refused upload leaves nothing behind. A visitor is known
by a cookie of the page and has a session while one of the page's heartbeats that carry it is open. Gradio's own route
would write first, keep everything, and remember every upload's name for ever.
"""

import asyncio
import re
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.responses import JSONResponse, PlainTextResponse

from tilewise.errors import ImageError
from tilewise.page.uploads import HEAD_BYTES, Upload, UploadRefusedError, Uploads

_UPLOAD = "/gradio_api/upload"
_HEARTBEAT = "/gradio_api/heartbeat/"
# Where browsers and gradio's own client come in first.
_ENTRANCES = ("/", "/config", "/config/")
VISITOR = "tilewise-visitor"
LANGUAGE = "tilewise-language"
_VISITOR_ID = re.compile(r"[0-9a-f]{32}")


class Intake:
    """Stands before `app`; what is no upload passes through, with a bounded body."""

    def __init__(self, app: Any, uploads: Uploads, words: Mapping[str, Mapping[str, str]]) -> None:
        """`words` are the page's, a mapping for each language."""
        self._app = app
        self._uploads = uploads
        self._words = words
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                self._stop()
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == _UPLOAD and scope["method"] == "POST":
            await self._answer_upload(scope, receive, send)
        elif scope["path"].startswith(_HEARTBEAT):
            await self._hold_session(scope, receive, send)
        else:
            await self._pass(scope, receive, send)

    async def _hold_session(self, scope: Any, receive: Any, send: Any) -> None:
        visitor = _read_cookies(scope).get(VISITOR)
        if visitor is None:
            await self._app(scope, receive, send)
            return
        self._uploads.open_session(visitor)
        try:
            await self._app(scope, receive, send)
        finally:
            self._uploads.close_session(visitor)
            self._expire()

    async def _pass(self, scope: Any, receive: Any, send: Any) -> None:
        is_new = scope["path"] in _ENTRANCES and VISITOR not in _read_cookies(scope)
        most_bytes = self._uploads.limits.json_bytes
        num_bytes = 0

        async def receive_bounded() -> Any:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            return {"type": "http.disconnect"} if num_bytes > most_bytes else message

        async def send_with_cookie(message: Any) -> None:
            if is_new and message["type"] == "http.response.start":
                cookie = f"{VISITOR}={token_hex(16)}; Path=/; HttpOnly; SameSite=Lax"
                message["headers"] = [*message["headers"], (b"set-cookie", cookie.encode())]
            await send(message)

        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > most_bytes:
            await self._refuse(UploadRefusedError(413, "upload_text"), scope, receive, send)
        else:
            await self._app(scope, receive_bounded, send_with_cookie)

    async def _answer_upload(self, scope: Any, receive: Any, send: Any) -> None:
        guest = f"guest {(scope.get('client') or ('',))[0]}"
        parts = _Parts(self._uploads, _read_cookies(scope).get(VISITOR), guest)
        try:
            try:
                await self._read(scope, receive, parts)
            except TimeoutError:
                raise UploadRefusedError(400, "upload_slow") from None
            except FormParserError:
                raise UploadRefusedError(400, "upload_form") from None
        except UploadRefusedError as refused:
            parts.drop()
            await self._refuse(refused, scope, receive, send)
        else:
            await JSONResponse(parts.keep())(scope, receive, send)
        finally:
            parts.drop()  # also where the visitor has left
            self._expire()

    async def _read(self, scope: Any, receive: Any, parts: "_Parts") -> None:
        headers = dict(scope["headers"])
        kind, options = parse_options_header(headers.get(b"content-type"))
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise UploadRefusedError(400, "upload_form")
        parser = MultipartParser(options[b"boundary"], parts.callbacks())
        refused: UploadRefusedError | FormParserError | None = None
        ends_at = asyncio.get_running_loop().time() + self._uploads.limits.request_s
        is_more = True
        while is_more:
            async with asyncio.timeout_at(ends_at):
                message = await receive()
            if message["type"] == "http.disconnect":
                raise UploadRefusedError(400, "upload_form")
            is_more = message.get("more_body", False)
            # A refused upload is read on: a browser reads no answer before it has sent everything.
            if refused is None:
                try:
                    await asyncio.to_thread(parser.write, message.get("body", b""))
                except (UploadRefusedError, FormParserError) as error:
                    refused = error
                    parts.drop()
        if refused is not None:
            raise refused
        if not parts.is_ended:
            raise UploadRefusedError(400, "upload_form")

    async def _refuse(self, refused: UploadRefusedError, scope: Any, receive: Any, send: Any) -> None:
        words = self._words[_read_language(scope)]
        limits = self._uploads.limits
        text = words[refused.word].format(
            picture_mb=limits.image.max_bytes >> 20, session_mb=limits.session_bytes >> 20, files=limits.session_files
        )
        await PlainTextResponse(text, refused.status, {"cache-control": "no-store"})(scope, receive, send)

    def _expire(self) -> None:
        """Take away whose time has come, and come back when the next one's has."""
        if self._timer is not None:
            self._timer.cancel()
        wait_s = self._uploads.expire()
        self._timer = None if wait_s is None else asyncio.get_running_loop().call_later(wait_s, self._expire)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._uploads.close()


class _Parts:
    """The parts of one upload, as the parser tells of them."""

    def __init__(self, uploads: Uploads, visitor: str | None, guest: str) -> None:
        self._uploads = uploads
        self._visitor = visitor
        self._guest = guest
        self.is_ended = False
        self._whole: list[Upload] = []
        self._begun: Upload | None = None
        self._head = b""
        self._name = ""
        self._field = b""
        self._value = b""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_field,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._check_name,
            "on_part_data": self._add,
            "on_part_end": self._end,
            "on_end": self._end_form,
        }

    def keep(self) -> list[str]:
        """The paths of the pictures, which are whole now."""
        kept = self._whole
        self._whole = []
        return [str(upload.path) for upload in kept]

    def drop(self) -> None:
        """Leave nothing of what has not been kept."""
        for upload in (*self._whole, *(() if self._begun is None else (self._begun,))):
            self._uploads.drop(upload)
        self._whole = []
        self._begun = None

    def _begin(self) -> None:
        self._head = self._field = self._value = b""
        self._name = ""

    def _add_to_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            if options.get(b"name") == b"files":
                self._name = options.get(b"filename", b"").decode("utf-8", "replace")
        self._field = self._value = b""

    def _check_name(self) -> None:
        if not self._name:
            raise UploadRefusedError(400, "upload_form")

    def _add(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._begun is None:
            self._head += piece
            if len(self._head) < HEAD_BYTES:
                return
            piece = self._start()
        assert self._begun is not None
        self._uploads.write(self._begun, piece)

    def _start(self) -> bytes:
        """Begin the picture; gives its bytes so far."""
        try:
            self._begun = self._uploads.begin(self._visitor, self._guest, self._name, self._head)
        except ImageError:
            raise UploadRefusedError(415, "upload_kind") from None
        return self._head

    def _end(self) -> None:
        if self._begun is None:
            head = self._start()
            assert self._begun is not None
            self._uploads.write(self._begun, head)
        self._uploads.finish(self._begun)
        self._whole.append(self._begun)
        self._begun = None

    def _end_form(self) -> None:
        self.is_ended = True


def _read_cookies(scope: Any) -> dict[str, str]:
    """The page's own cookies, each where it has the form that the page gave it."""
    read: dict[str, str] = {}
    for header, value in scope["headers"]:
        if header == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                name, _, given = pair.strip().partition("=")
                if name in (VISITOR, LANGUAGE):
                    read[name] = given
    if not _VISITOR_ID.fullmatch(read.get(VISITOR, "")):
        read.pop(VISITOR, None)
    return read


def _read_language(scope: Any) -> str:
    return "zh-CN" if _read_cookies(scope).get(LANGUAGE, "").startswith("zh") else "en"
