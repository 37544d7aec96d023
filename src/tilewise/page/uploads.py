"""The pictures that visitors upload: whose they are, how many are kept, and for how long. No HTTP here.

Each picture lies in a folder of its own whose name nobody can guess, and belongs to an owner. An owner who has a
session, that is the page open somewhere, is refused what its quota does not hold. What comes without one belongs to a
guest: it is kept for minutes, and a guest's older pictures give way to newer ones. Where all owners together hold too
much, guests' oldest pictures give way first, then the oldest of whoever holds most.

Invariant: every byte on disk is counted before it is written.
"""

import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import BinaryIO

from tilewise.errors import ConfigError
from tilewise.inputs.media.pixels import sniff_format
from tilewise.inputs.media.policy import MIB, ImageLimits

# The shortest beginning that tells every accepted format.
HEAD_BYTES = 12
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
}
_MAX_NAME = 60
_NO_NAME = re.compile(r"[^\w\-. ]")


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What visitors may leave on the page's disk.

    Units: `_bytes` and `_s` by name. `image` bounds one picture. `grace_s` is how long a session outlives its last open
    page, so that one can be loaded again; `guest_s` how long a picture without a session is kept; `request_s` how long
    one upload may take; `json_bytes` bounds a request of another kind.

    Raises:
        ConfigError: a bound is negative or of another type, or a session may hold more than all; `param` names it.
    """

    image: ImageLimits = field(default_factory=ImageLimits)
    session_bytes: int = 64 * MIB
    session_files: int = 64
    total_bytes: int = 1024 * MIB
    total_files: int = 4096
    grace_s: float = 60.0
    guest_s: float = 300.0
    request_s: float = 300.0
    json_bytes: int = 16 * MIB

    def __post_init__(self) -> None:
        """Refuse bounds that mean nothing."""
        for bound in fields(self):
            value = getattr(self, bound.name)
            if bound.name != "image" and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
                raise ConfigError(f"{bound.name}={value!r:.80} must be a number of at least 0.", param=bound.name)
        if self.session_bytes > self.total_bytes or self.session_files > self.total_files:
            raise ConfigError("A session may not hold more than all sessions together.", param="session_bytes")


class UploadRefusedError(Exception):
    """An upload that is not kept: the HTTP `status`, and the `word` of words.json that says why."""

    def __init__(self, status: int, word: str) -> None:
        """Keep both."""
        super().__init__(word)
        self.status = status
        self.word = word


@dataclass(eq=False, slots=True)
class Upload:
    """One picture on disk; until it `is_whole`, one that is being written. A guest's may have a `visitor` to come."""

    owner: str
    visitor: str | None
    path: Path
    created_at: float
    file: BinaryIO
    num_bytes: int = 0
    is_whole: bool = False


class Uploads:
    """All pictures that are kept; safe to call from several threads."""

    def __init__(self, folder: Path, limits: UploadLimits, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep pictures below `folder`. `clock` gives seconds."""
        self.limits = limits
        self._folder = folder
        self._clock = clock
        self._lock = threading.RLock()
        self._kept: list[Upload] = []  # oldest first
        self._bytes: Counter[str] = Counter()
        self._files: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._closed_at: dict[str, float] = {}

    def open_session(self, owner: str) -> None:
        """The owner has opened the page, perhaps once more; what came as a guest's until then is the owner's."""
        with self._lock:
            self._open[owner] += 1
            self._closed_at.pop(owner, None)
            for upload in self._kept:
                if upload.visitor == owner and upload.owner != owner:
                    self._count(upload, -1, -upload.num_bytes)
                    upload.owner = owner
                    self._count(upload, 1, upload.num_bytes)

    def close_session(self, owner: str) -> None:
        """One page of the owner is gone; after the last, `expire` takes its pictures once the grace has passed."""
        with self._lock:
            self._open[owner] -= 1
            if self._open[owner] <= 0:
                del self._open[owner]
                self._closed_at[owner] = self._clock()

    def has_session(self, owner: str) -> bool:
        """Whether the owner has the page open, or had so until a moment ago."""
        with self._lock:
            return owner in self._open or owner in self._closed_at

    def begin(self, visitor: str | None, guest: str, name: str, head: bytes) -> Upload:
        """Start a picture that is called `name` and whose first bytes are `head`, of which none is written yet.

        It belongs to `visitor` where that has a session, otherwise to `guest` for the time being.

        Raises:
            UploadRefusedError: it is no picture, or there is no room for one more.
        """
        path = self._folder / secrets.token_hex(16) / _name_file(name, sniff_format(head))
        with self._lock:
            owner = guest if visitor is None or not self.has_session(visitor) else visitor
            self._make_room(owner, num_files=1)
            path.parent.mkdir(parents=True)
            upload = Upload(owner, visitor, path, self._clock(), path.open("xb"))
            self._kept.append(upload)
            self._count(upload, 1, 0)
        return upload

    def write(self, upload: Upload, data: bytes) -> None:
        """Add to a picture that was begun.

        Raises:
            UploadRefusedError: it becomes too large, or there is no room for so much.
        """
        if upload.num_bytes + len(data) > self.limits.image.max_bytes:
            raise UploadRefusedError(413, "upload_large")
        with self._lock:
            self._make_room(upload.owner, num_bytes=len(data))
            upload.num_bytes += len(data)
            self._count(upload, 0, len(data))
        upload.file.write(data)

    def finish(self, upload: Upload) -> None:
        """The picture is whole: from now on it may be asked about, and may give way."""
        upload.file.close()
        with self._lock:
            upload.is_whole = True

    def drop(self, upload: Upload) -> None:
        """Take a picture away, whole or not."""
        with self._lock:
            upload.file.close()
            if upload in self._kept:
                self._kept.remove(upload)
                self._count(upload, -1, -upload.num_bytes)
            shutil.rmtree(upload.path.parent, ignore_errors=True)

    def expire(self) -> float | None:
        """Take away what ended sessions and guests have had their time for; gives seconds until there is more to do."""
        with self._lock:
            now = self._clock()
            over = [owner for owner, closed_at in self._closed_at.items() if now >= closed_at + self.limits.grace_s]
            for owner in over:
                del self._closed_at[owner]
            for upload in list(self._of_guests()):
                if upload.owner in over or now >= upload.created_at + self.limits.guest_s:
                    self.drop(upload)
            ends = [closed_at + self.limits.grace_s for closed_at in self._closed_at.values()]
            ends += [upload.created_at + self.limits.guest_s for upload in self._of_guests()]
            return max(0.0, min(ends) - now) if ends else None

    def close(self) -> None:
        """Take everything away."""
        with self._lock:
            for upload in list(self._kept):
                self.drop(upload)

    def _count(self, upload: Upload, num_files: int, num_bytes: int) -> None:
        self._files[upload.owner] += num_files
        self._bytes[upload.owner] += num_bytes
        if not self._files[upload.owner]:
            del self._files[upload.owner], self._bytes[upload.owner]

    def _of_guests(self) -> Iterator[Upload]:
        return (upload for upload in self._kept if upload.is_whole and not self.has_session(upload.owner))

    def _make_room(self, owner: str, num_bytes: int = 0, num_files: int = 0) -> None:
        limits = self.limits
        while (
            self._bytes[owner] + num_bytes > limits.session_bytes
            or self._files[owner] + num_files > limits.session_files
        ):
            own = next((upload for upload in self._of_guests() if upload.owner == owner), None)
            if own is None:
                raise UploadRefusedError(413, "upload_session")
            self.drop(own)
        while (
            self._bytes.total() + num_bytes > limits.total_bytes or self._files.total() + num_files > limits.total_files
        ):
            given_up = next(self._of_guests(), None) or self._find_of_greatest(owner, num_bytes, num_files)
            if given_up is None:
                raise UploadRefusedError(507, "upload_full")
            self.drop(given_up)

    def _find_of_greatest(self, owner: str, num_bytes: int, num_files: int) -> Upload | None:
        """The oldest picture of the owner who holds most, if that is more than the one who asks will hold."""
        if not self.has_session(owner):
            return None
        held, wanted = (self._files, num_files) if num_files else (self._bytes, num_bytes)
        whole = {upload.owner for upload in self._kept if upload.is_whole}
        greatest = max(whole, key=lambda name: held[name], default=owner)
        if held[greatest] <= held[owner] + wanted:
            return None
        return next(upload for upload in self._kept if upload.is_whole and upload.owner == greatest)


def _name_file(name: str, format_name: str) -> str:
    """A name that is plain, short, and says the format that the bytes have."""
    plain = _NO_NAME.sub("", name.replace("\\", "/").rpartition("/")[2])
    stem, dot, suffix = plain.rpartition(".")
    if not dot or f".{suffix.lower()}" not in _SUFFIXES[format_name]:
        stem, suffix = plain, _SUFFIXES[format_name][0][1:]
    return f"{stem[:_MAX_NAME].strip('. ') or 'picture'}.{suffix}"
