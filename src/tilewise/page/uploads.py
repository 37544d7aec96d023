"""The pictures that visitors upload: whose they are, how many are kept, and for how long. No HTTP here.

Each picture lies in a folder of its own whose name nobody can guess, and belongs to an owner: the session of its
visitor, who has the page open somewhere, or all guests of one address. A session is refused what its quota does not
hold. A guest's pictures are kept for minutes, and older ones give way to newer ones. Where all owners together hold too
much, pictures of guests and of sessions that have just begun give way first, then those of the address that holds most,
and of the session that holds most there.

Invariant: every byte on disk is counted before it is written.
"""

import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
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
UNSAFE_IN_NAMES = re.compile(r"[^\w\-. ]")


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What visitors may leave on the page's disk, and send to it.

    Units: `_bytes` and `_s` by name. `image` bounds one picture. `grace_s` is how long a session outlives its last sign
    of life: a laptop may sleep for a moment. A session counts before others once it has been open for `settled_s`.
    `guest_s` is how long a picture without a session is kept. `address_uploads` bounds the unfinished uploads of one
    address. A request may take `request_s`, and fall `patience_s` behind `min_bytes_per_s`. `request_bytes` bounds what
    is read of one upload, `json_bytes` a request of another kind, `address_json_bytes` and `all_json_bytes` those of
    one address and of all.

    Raises:
        ConfigError: a bound is negative or of another type, or a session may hold more than all; `param` names it.
    """

    image: ImageLimits = field(default_factory=ImageLimits)
    session_bytes: int = 64 * MIB
    session_files: int = 64
    total_bytes: int = 1024 * MIB
    total_files: int = 4096
    grace_s: float = 900.0
    settled_s: float = 5.0
    guest_s: float = 300.0
    address_uploads: int = 32
    request_s: float = 300.0
    patience_s: float = 20.0
    min_bytes_per_s: float = 4096.0
    request_bytes: int = 256 * MIB
    # A browser stores 5 million characters of encrypted chats at most, which come along with each question.
    json_bytes: int = 8 * MIB
    address_json_bytes: int = 16 * MIB
    all_json_bytes: int = 64 * MIB

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


@dataclass(frozen=True, slots=True)
class Sender:
    """Where an upload comes from: an address, and a visitor whose browser brings the page's cookie."""

    address: str
    visitor: str | None = None


@dataclass(eq=False, slots=True)
class Upload:
    """One picture on disk. Its file is open while it is written; it `is_kept` once its whole request has come."""

    sender: Sender
    path: Path
    created_at: float
    file: BinaryIO
    num_bytes: int = 0
    is_kept: bool = False


@dataclass(slots=True)
class _Session:
    """A visitor who has the page open, or had so a moment ago."""

    opened_at: float
    seen_at: float
    num_open: int = 0
    is_settled: bool = False


class Uploads:
    """All pictures that are kept; safe to call from several threads."""

    def __init__(self, folder: Path, limits: UploadLimits, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep pictures below `folder`. `clock` gives seconds."""
        self.limits = limits
        self._folder = folder
        self._clock = clock
        self._lock = threading.RLock()
        self._uploads: dict[Upload, None] = {}  # oldest first
        self._sessions: dict[str, _Session] = {}

    def open_session(self, visitor: str) -> None:
        """The visitor has opened the page, perhaps once more; what came as a guest's until then is the visitor's."""
        with self._lock:
            now = self._clock()
            session = self._sessions.setdefault(visitor, _Session(now, now))
            if session.num_open == 0:
                session.opened_at = now
            session.num_open += 1

    def close_session(self, visitor: str) -> None:
        """One page of the visitor is gone; after the last, `expire` takes its pictures once the grace has passed."""
        with self._lock:
            session = self._sessions[visitor]
            session.is_settled = self._is_settled(visitor)
            session.num_open -= 1
            session.seen_at = self._clock()
            if not session.num_open and not self._held_by(visitor):
                del self._sessions[visitor]

    def has_open_session(self, visitor: str | None) -> bool:
        """Whether the visitor has the page open. That somebody asks keeps the visitor's pictures for a grace more."""
        with self._lock:
            session = self._sessions.get(visitor or "")
            if session is None:
                return False
            session.seen_at = self._clock()
            return session.num_open > 0

    def begin(self, sender: Sender, name: str, head: bytes) -> Upload:
        """Start a picture that is called `name` and whose first bytes are `head`, of which none is written yet.

        Raises:
            ImageError: it is no picture.
            UploadRefusedError: there is no room for one more.
        """
        path = self._folder / secrets.token_hex(16) / _name_file(name, sniff_format(head))
        with self._lock:
            unfinished = [upload for upload in self._uploads if not upload.file.closed]
            if sum(upload.sender.address == sender.address for upload in unfinished) >= self.limits.address_uploads:
                raise UploadRefusedError(429, "upload_many")
            self._make_room(sender, num_files=1)
            path.parent.mkdir(parents=True)
            upload = Upload(sender, path, self._clock(), path.open("xb"))
            self._uploads[upload] = None
        return upload

    def write(self, upload: Upload, data: bytes) -> None:
        """Add to a picture that was begun.

        Raises:
            UploadRefusedError: it becomes too large, there is no room for so much, or it has given way to others.
        """
        if upload.num_bytes + len(data) > self.limits.image.max_bytes:
            raise UploadRefusedError(413, "upload_large")
        with self._lock:
            self._check_present(upload)
            self._make_room(upload.sender, num_bytes=len(data))
            upload.num_bytes += len(data)
            upload.file.write(data)

    def finish(self, upload: Upload) -> None:
        """All bytes of the picture have come."""
        with self._lock:
            upload.file.close()

    def keep(self, uploads: Iterable[Upload]) -> None:
        """The pictures' request has come whole: from now on they may be asked about, and expire.

        Raises:
            UploadRefusedError: one of them has given way to others.
        """
        with self._lock:
            for upload in uploads:
                self._check_present(upload)
            for upload in uploads:
                upload.is_kept = True

    def drop(self, upload: Upload) -> None:
        """Take a picture away, finished or not."""
        with self._lock:
            upload.file.close()
            self._uploads.pop(upload, None)
            shutil.rmtree(upload.path.parent, ignore_errors=True)

    def expire(self) -> float | None:
        """Take away what is over; gives seconds until the next is, None where nothing will be."""
        with self._lock:
            now = self._clock()
            ends_at: dict[str, float] = {}
            for visitor, session in self._sessions.items():
                if not session.num_open:
                    ends_at[visitor] = session.seen_at + self.limits.grace_s
            waits: list[float] = []
            for upload in [upload for upload in self._uploads if upload.is_kept]:
                owner = self._name_owner(upload.sender)
                if owner not in self._sessions:
                    waits.append(upload.created_at + self.limits.guest_s - now)
                elif owner in ends_at:
                    waits.append(ends_at[owner] - now)
                else:
                    continue
                if waits[-1] <= 0:
                    self.drop(upload)
            for visitor, end_at in ends_at.items():
                if end_at <= now:
                    del self._sessions[visitor]
            return min((wait for wait in waits if wait > 0), default=None)

    def close(self) -> None:
        """Take everything away."""
        with self._lock:
            for upload in list(self._uploads):
                self.drop(upload)

    def _check_present(self, upload: Upload) -> None:
        if upload not in self._uploads:
            raise UploadRefusedError(507, "upload_full")

    def _name_owner(self, sender: Sender) -> str:
        if sender.visitor in self._sessions:
            return sender.visitor
        return f"guest {sender.address}"

    def _held_by(self, owner: str) -> list[Upload]:
        return [upload for upload in self._uploads if self._name_owner(upload.sender) == owner]

    def _is_settled(self, owner: str) -> bool:
        session = self._sessions.get(owner)
        if session is None:
            return False
        is_old = session.num_open > 0 and self._clock() - session.opened_at >= self.limits.settled_s
        return session.is_settled or is_old

    def _make_room(self, sender: Sender, num_bytes: int = 0, num_files: int = 0) -> None:
        limits = self.limits
        owner = self._name_owner(sender)
        held = self._held_by(owner)
        while _is_over(held, num_bytes, num_files, limits.session_bytes, limits.session_files):
            oldest = next((upload for upload in held if upload.is_kept), None)
            if owner in self._sessions or oldest is None:
                raise UploadRefusedError(413, "upload_session")
            self.drop(oldest)
            held.remove(oldest)
        while _is_over(self._uploads, num_bytes, num_files, limits.total_bytes, limits.total_files):
            self.drop(self._choose_victim(sender, num_bytes, num_files))

    def _choose_victim(self, sender: Sender, num_bytes: int, num_files: int) -> Upload:
        """Another owner's upload that gives way.

        Raises:
            UploadRefusedError: nobody else holds as much as the sender would.
        """
        owner, added = self._name_owner(sender), num_bytes + num_files
        owners = {upload: self._name_owner(upload.sender) for upload in self._uploads}
        by_owner, by_address = Counter[str](), Counter[str]()
        for upload, name in owners.items():
            amount = 1 if num_files else upload.num_bytes
            by_owner[name] += amount
            by_address[upload.sender.address] += amount

        def holds_more(upload: Upload) -> bool:
            if upload.sender.address == sender.address:
                return by_owner[owners[upload]] >= by_owner[owner] + added
            return by_address[upload.sender.address] >= by_address[sender.address] + added

        others = [upload for upload, name in owners.items() if name != owner]
        candidates = [upload for upload in others if not self._is_settled(owners[upload])]
        if not candidates and self._is_settled(owner):
            candidates = [upload for upload in others if holds_more(upload)]
        if not candidates:
            raise UploadRefusedError(507, "upload_full")
        greatest = max(candidates, key=lambda one: (by_address[one.sender.address], by_owner[owners[one]]))
        return min(
            (upload for upload in candidates if owners[upload] == owners[greatest]),
            key=self._rank_victim,
        )

    def _rank_victim(self, upload: Upload) -> tuple[bool, float]:
        """Unfinished uploads give way first, slowest first; then pictures, oldest first."""
        if upload.is_kept:
            return True, upload.created_at
        return False, upload.num_bytes / (self._clock() - upload.created_at + 1.0)


def _is_over(uploads: Iterable[Upload], num_bytes: int, num_files: int, most_bytes: int, most_files: int) -> bool:
    sizes = [upload.num_bytes for upload in uploads]
    return sum(sizes) + num_bytes > most_bytes or len(sizes) + num_files > most_files


def _name_file(name: str, format_name: str) -> str:
    """A name that is plain, short, and says the format that the bytes have."""
    plain = UNSAFE_IN_NAMES.sub("", name.replace("\\", "/").rpartition("/")[2])
    stem, dot, suffix = plain.rpartition(".")
    if not dot or f".{suffix.lower()}" not in _SUFFIXES[format_name]:
        stem, suffix = plain, _SUFFIXES[format_name][0][1:]
    return f"{stem[:_MAX_NAME].strip('. ') or 'picture'}.{suffix}"
