"""The pictures of one upload's form, written while the form is parsed. No HTTP here."""

from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tilewise.errors import ImageError
from tilewise.page.uploads import HEAD_BYTES, Sender, Upload, UploadRefusedError, Uploads

_MAX_HEADER_BYTES = 8192  # of one part


class UploadForm:
    """Takes the bytes of a form in pieces of any size."""

    def __init__(self, uploads: Uploads, sender: Sender, content_type: str | None) -> None:
        """Read a form of the kind that the request's header says.

        Raises:
            UploadRefusedError: it is no form with files.
        """
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise UploadRefusedError(400, "upload_form")
        callbacks: Any = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_to_field,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._check_name,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end_form,
        }
        self._parser = MultipartParser(options[b"boundary"], callbacks)
        self._uploads = uploads
        self._sender = sender
        self._is_ended = False
        self._pictures: list[Upload] = []
        self.name = ""
        self._current: Upload | None = None
        self._head = b""
        self._field = b""
        self._value = b""

    def write(self, data: bytes) -> None:
        """Parse a piece, and write what is a picture's.

        Raises:
            UploadRefusedError: a picture is not kept, or this is no form.
        """
        try:
            self._parser.write(data)
        except FormParserError:
            raise UploadRefusedError(400, "upload_form") from None

    def keep(self) -> list[str]:
        """The paths of the pictures, once the form is whole.

        Raises:
            UploadRefusedError: it is not whole, or a picture has given way to others.
        """
        if not self._is_ended:
            raise UploadRefusedError(400, "upload_form")
        self._uploads.keep(self._pictures)
        kept, self._pictures = self._pictures, []
        return [str(upload.path) for upload in kept]

    def drop(self) -> None:
        """Leave nothing of what has not been kept."""
        for upload in self._pictures:
            self._uploads.drop(upload)
        self._pictures = []

    def _begin_part(self) -> None:
        self._current = None
        self._head = b""
        self.name = ""

    def _add_to_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]
        self._check_header()

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._field) + len(self._value) > _MAX_HEADER_BYTES:
            raise UploadRefusedError(400, "upload_form")

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            if options.get(b"name") == b"files":
                self.name = options.get(b"filename", b"").decode("utf-8", "replace")
        self._field = b""
        self._value = b""

    def _check_name(self) -> None:
        if not self.name:
            raise UploadRefusedError(400, "upload_form")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._current is not None:
            self._uploads.write(self._current, data[start:end])
            return
        self._head += data[start:end]
        if len(self._head) >= HEAD_BYTES:
            self._begin_picture()

    def _begin_picture(self) -> Upload:
        try:
            picture = self._uploads.begin(self._sender, self.name, self._head)
        except ImageError:
            raise UploadRefusedError(415, "upload_kind") from None
        self._current = picture
        self._pictures.append(picture)
        self._uploads.write(picture, self._head)
        return picture

    def _end_part(self) -> None:
        self._uploads.finish(self._current or self._begin_picture())

    def _end_form(self) -> None:
        self._is_ended = True
