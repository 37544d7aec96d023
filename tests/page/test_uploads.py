"""What visitors leave on the page's disk: how much, for whom, and until when."""

import contextlib
import random
from pathlib import Path

import pytest

from tilewise.errors import ConfigError, ImageError
from tilewise.inputs.media.policy import ImageLimits
from tilewise.page.uploads import Sender, Upload, UploadLimits, UploadRefusedError, Uploads

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


class Clock:
    """Seconds that pass when the test says so."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def create(folder: Path, clock: Clock, **limits: float) -> Uploads:
    small = {"session_bytes": 100, "session_files": 8, "total_bytes": 250, "total_files": 16, "settled_s": 0, **limits}
    return Uploads(folder, UploadLimits(**small), clock)  # type: ignore[arg-type]


def begin(uploads: Uploads, owner: str, num_bytes: int, name: str = "a.png", address: str | None = None) -> Upload:
    upload = uploads.begin(Sender(address or owner, owner), name, PNG)
    try:
        uploads.write(upload, bytes(num_bytes))
    except UploadRefusedError:
        uploads.drop(upload)
        raise
    return upload


def put(uploads: Uploads, owner: str, num_bytes: int, name: str = "a.png", address: str | None = None) -> Upload:
    upload = begin(uploads, owner, num_bytes, name, address)
    uploads.finish(upload)
    uploads.keep([upload])
    return upload


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_session_is_refused_what_its_quota_does_not_hold_and_keeps_what_it_has(tmp_path: Path, clock: Clock) -> None:
    uploads = create(tmp_path, clock, session_files=3)
    uploads.open_session("a")
    first = put(uploads, "a", 60)
    with pytest.raises(UploadRefusedError, match="upload_session"):
        put(uploads, "a", 41)
    put(uploads, "a", 10)
    put(uploads, "a", 10)
    with pytest.raises(UploadRefusedError, match="upload_session") as refused:
        put(uploads, "a", 1)
    assert refused.value.status == 413
    assert first.path.exists()
    assert on_disk(tmp_path) == 80


def test_a_sessions_pictures_go_with_its_last_page_once_the_grace_has_passed(tmp_path: Path, clock: Clock) -> None:
    uploads = create(tmp_path, clock, grace_s=60)
    uploads.open_session("a")
    uploads.open_session("a")
    put(uploads, "a", 60)
    uploads.close_session("a")
    clock.now_s = 1000
    assert uploads.expire() is None
    uploads.close_session("a")
    assert uploads.expire() == 60
    clock.now_s = 1059
    uploads.open_session("a")  # loaded again
    clock.now_s = 2000
    uploads.expire()
    assert on_disk(tmp_path) == 60
    uploads.close_session("a")
    clock.now_s = 2060
    uploads.expire()
    assert not list(tmp_path.iterdir())


def test_a_guests_pictures_go_after_minutes_and_the_oldest_give_way(tmp_path: Path, clock: Clock) -> None:
    uploads = create(tmp_path, clock, guest_s=300)
    first, second = put(uploads, "guest", 60), put(uploads, "guest", 40)
    third = put(uploads, "guest", 50)
    assert [upload.path.exists() for upload in (first, second, third)] == [False, True, True]
    clock.now_s = 299
    assert uploads.expire() == 1
    assert on_disk(tmp_path) == 90
    clock.now_s = 300
    assert uploads.expire() is None
    assert not list(tmp_path.iterdir())


def test_what_came_before_its_page_was_open_becomes_the_sessions(tmp_path: Path, clock: Clock) -> None:
    uploads = create(tmp_path, clock, grace_s=0)
    upload = begin(uploads, "a", 60, address="guest")
    uploads.open_session("a")
    uploads.finish(upload)
    uploads.keep([upload])
    clock.now_s = 1000
    uploads.expire()
    assert upload.path.exists()
    put(uploads, "guest", 100)
    with pytest.raises(UploadRefusedError, match="upload_session"):
        put(uploads, "a", 50)
    uploads.close_session("a")
    uploads.expire()
    assert not upload.path.exists()


def test_guests_give_way_to_a_session_where_all_hold_too_much_and_never_the_other_way(
    tmp_path: Path, clock: Clock
) -> None:
    uploads = create(tmp_path, clock)
    for owner in ("a", "b", "c"):
        uploads.open_session(owner)
    put(uploads, "a", 80)
    guests = [put(uploads, f"guest {number}", 80) for number in range(2)]
    put(uploads, "b", 80)
    assert [upload.path.exists() for upload in guests] == [False, True]
    put(uploads, "c", 80)
    assert not guests[1].path.exists()
    with pytest.raises(UploadRefusedError, match="upload_full") as refused:
        put(uploads, "guest", 80)
    assert refused.value.status == 507
    assert on_disk(tmp_path) == 240


def test_sessions_that_hold_most_cannot_lock_a_newcomer_out(tmp_path: Path, clock: Clock) -> None:
    uploads = create(tmp_path, clock)
    for owner in ("greedy 1", "greedy 2", "newcomer"):
        uploads.open_session(owner)
    for _ in range(5):
        put(uploads, "greedy 1", 20)
        put(uploads, "greedy 2", 20)
    mine = [put(uploads, "newcomer", 20) for _ in range(4)]
    with pytest.raises(UploadRefusedError):
        put(uploads, "greedy 1", 40)
    assert all(upload.path.exists() for upload in mine)
    assert on_disk(tmp_path) <= 250


def test_a_picture_is_bounded_while_it_is_written_and_a_dropped_one_leaves_nothing(
    tmp_path: Path, clock: Clock
) -> None:
    uploads = create(tmp_path, clock, session_bytes=250, image=ImageLimits(max_bytes=100))  # type: ignore[arg-type]
    uploads.open_session("a")
    upload = begin(uploads, "a", 100)
    with pytest.raises(UploadRefusedError, match="upload_large"):
        uploads.write(upload, b"x")
    uploads.drop(upload)
    uploads.drop(upload)
    assert not list(tmp_path.iterdir())
    put(uploads, "a", 100)
    put(uploads, "a", 100)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("图 片.png", "图 片.png"),
        ("a.PNG", "a.PNG"),
        ("page.html", "page.html.png"),
        ("../../etc/passwd", "passwd.png"),
        ("..", "picture.png"),
        ("C:\\x\\y.jpg", "y.jpg.png"),
        ("a\x00\n<b>.png", "ab.png"),
        ("x" * 500 + ".png", "x" * 60 + ".png"),
    ],
)
def test_a_name_is_plain_and_says_the_format_that_the_bytes_have(
    tmp_path: Path, clock: Clock, given: str, kept: str
) -> None:
    upload = put(create(tmp_path, clock), "a", 1, given)
    assert upload.path.name == kept
    assert upload.path.parent.parent == tmp_path


def test_what_is_no_picture_is_never_begun(tmp_path: Path, clock: Clock) -> None:
    uploads = create(tmp_path, clock)
    for head in (b"", b"<svg xmlns=''>", b"%PDF-1.7 ....", b"RIFF....WAVE", b"\x00\x00\x00\x18ftypheic"):
        with pytest.raises(ImageError):
            uploads.begin(Sender("a", "a"), "a.png", head)
    assert not list(tmp_path.iterdir())


def test_whatever_happens_the_disk_holds_no_more_than_the_limits_say(tmp_path: Path, clock: Clock) -> None:
    dice = random.Random(0)
    uploads = create(tmp_path, clock, guest_s=20, grace_s=5)
    opened: list[str] = []
    for _ in range(2000):
        owner = f"owner {dice.randrange(6)}"
        step = dice.random()
        if step < 0.15:
            uploads.open_session(owner)
            opened.append(owner)
        elif step < 0.3 and opened:
            uploads.close_session(opened.pop(dice.randrange(len(opened))))
        elif step < 0.4:
            clock.now_s += dice.random() * 10
            uploads.expire()
        else:
            with contextlib.suppress(UploadRefusedError):
                put(uploads, owner, dice.randrange(120))
        assert on_disk(tmp_path) <= 250
        assert len(list(tmp_path.iterdir())) <= 16
    for owner in opened:
        uploads.close_session(owner)
    clock.now_s += 100
    uploads.expire()
    assert not list(tmp_path.iterdir())


def test_unfinished_uploads_give_way_to_a_newcomer_the_slowest_first(tmp_path: Path, clock: Clock) -> None:
    uploads = create(tmp_path, clock)
    for owner in ("greedy 1", "greedy 2", "newcomer"):
        uploads.open_session(owner)
    fast, slow = begin(uploads, "greedy 1", 60, address="one"), begin(uploads, "greedy 1", 40, address="one")
    clock.now_s = 60
    begin(uploads, "greedy 2", 100, address="one")
    put(uploads, "newcomer", 60)
    assert not slow.path.exists()
    assert fast.path.exists()
    with pytest.raises(UploadRefusedError, match="upload_full"):
        uploads.write(slow, b"x")
    uploads.close()
    assert not list(tmp_path.iterdir())


def test_thousands_of_sessions_of_one_picture_cannot_lock_a_newcomer_out(tmp_path: Path, clock: Clock) -> None:
    for address in ("there", "here"):  # elsewhere, or behind the same proxy as they are
        uploads = create(tmp_path / address, clock)
        for number in range(16):
            uploads.open_session(f"greedy {number}")
            put(uploads, f"greedy {number}", 1, address="here")
        uploads.open_session("newcomer")
        mine = put(uploads, "newcomer", 16, address=address)
        assert mine.path.exists()
        assert on_disk(tmp_path / address) == 31


def test_the_address_that_holds_most_gives_way_however_many_sessions_it_has(tmp_path: Path, clock: Clock) -> None:
    uploads = create(tmp_path, clock)
    for owner in ("honest", "newcomer"):
        uploads.open_session(owner)
    mine = put(uploads, "honest", 50)
    for number in range(10):
        uploads.open_session(f"greedy {number}")
        put(uploads, f"greedy {number}", 20, address="one")
    put(uploads, "newcomer", 40)
    assert mine.path.exists()
    assert on_disk(tmp_path) == 250


def test_a_session_counts_once_it_has_been_open_for_a_while(tmp_path: Path, clock: Clock) -> None:
    uploads = create(tmp_path, clock, settled_s=5)
    for owner in ("a", "b"):
        uploads.open_session(owner)
    uploads.open_session("glimpse")
    put(uploads, "glimpse", 30)
    uploads.close_session("glimpse")
    clock.now_s = 5
    put(uploads, "a", 100)
    put(uploads, "b", 100)
    uploads.open_session("c")
    put(uploads, "c", 30)
    with pytest.raises(UploadRefusedError, match="upload_full"):
        put(uploads, "c", 30)
    assert len(list(tmp_path.iterdir())) == 3, "of what has just begun, the other's gave way"
    clock.now_s = 10
    put(uploads, "c", 40)
    assert on_disk(tmp_path) <= 250


def test_whatever_a_visitor_asks_keeps_the_pictures_for_a_grace_more(tmp_path: Path, clock: Clock) -> None:
    uploads = create(tmp_path, clock, grace_s=60)
    uploads.open_session("a")
    put(uploads, "a", 60)
    uploads.close_session("a")
    clock.now_s = 50
    assert not uploads.has_open_session("a")
    clock.now_s = 100
    assert uploads.expire() == 10
    assert on_disk(tmp_path) == 60
    clock.now_s = 110
    assert uploads.expire() is None
    assert not list(tmp_path.iterdir())


def test_an_address_has_so_many_unfinished_uploads_and_no_more(tmp_path: Path, clock: Clock) -> None:
    uploads = create(tmp_path, clock, address_uploads=2)
    first = begin(uploads, "a", 1, address="one")
    begin(uploads, "b", 1, address="one")
    with pytest.raises(UploadRefusedError, match="upload_many") as refused:
        begin(uploads, "c", 1, address="one")
    assert refused.value.status == 429
    begin(uploads, "c", 1, address="two")
    uploads.finish(first)
    begin(uploads, "c", 1, address="one")
    uploads.close()


def test_no_part_of_an_upload_gives_way_to_the_next_of_its_parts(tmp_path: Path, clock: Clock) -> None:
    uploads = create(tmp_path, clock)
    parts = [begin(uploads, "guest", 50), begin(uploads, "guest", 50)]
    with pytest.raises(UploadRefusedError, match="upload_session"):
        begin(uploads, "guest", 50)
    for part in parts:
        uploads.finish(part)
    uploads.keep(parts)
    put(uploads, "guest", 50)
    assert [part.path.exists() for part in parts] == [False, True]
    with pytest.raises(UploadRefusedError, match="upload_full"):
        uploads.keep(parts)


@pytest.mark.parametrize(
    "wrong", [{"session_bytes": -1}, {"total_files": True}, {"session_bytes": 300}, {"grace_s": "1"}]
)
def test_limits_that_mean_nothing_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError) as refused:
        UploadLimits(**{"total_bytes": 250, "session_bytes": 100, **wrong})  # type: ignore[arg-type]
    assert refused.value.param in wrong
