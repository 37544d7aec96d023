"""The server's settings and its log, without a server."""

import json
import logging
import os
import socket
import sys
from dataclasses import fields
from pathlib import Path
from shutil import which

import pytest

from tests.processes import run_command
from tilewise.cli import main as cli
from tilewise.cli.flags import SERVER_HELP
from tilewise.errors import ConfigError
from tilewise.serving.config import ServerConfig
from tilewise.serving.log import LineFormatter
from tilewise.serving.server import bind


def test_every_server_option_has_a_flag() -> None:
    assert set(SERVER_HELP) == {field.name for field in fields(ServerConfig)}


@pytest.fixture(autouse=True)
def _no_keys_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TILEWISE_API_KEYS", raising=False)


def test_keys_come_from_flags_the_environment_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("c\n\n d \na\n")
    monkeypatch.setenv("TILEWISE_API_KEYS", "b, ,a")
    config = ServerConfig(api_keys=("a",), api_keys_file=str(tmp_path / "keys"))
    assert config.read_keys() == ("a", "b", "c", "d")
    assert ServerConfig().read_keys() == ("b", "a")


def test_a_keys_file_that_would_open_the_door_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n\n")
    (tmp_path / "huge").write_text("key\n" * (1 << 19))
    os.mkfifo(tmp_path / "pipe")
    for name in ("empty", "missing", "", "huge", "pipe"):
        path = tmp_path / name
        with pytest.raises(ConfigError, match="keys' file"):
            ServerConfig(api_keys_file=str(path)).read_keys()
    for key in ("a b", "\xfcber", "a\x01"):
        with pytest.raises(ConfigError):
            ServerConfig(api_keys=(key,)).read_keys()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--server-port 70000", "server_port=70000"),
        ("--max-queued -1", "max_queued=-1"),
        ("--server-fd 2", "server_fd=2 must be 3 or more"),
        ("--server-fd 999", "server_fd=999 is no TCP socket"),
        ("--log-format xml", "log_format='xml'"),
        ("--ssl-certfile a.pem", "both ssl_certfile and ssl_keyfile"),
        ("--api-keys-file no-such-file", "keys' file cannot be read"),
        ("--server-name 203.0.113.1", "cannot be bound"),
        ("--ssl-certfile no.pem --ssl-keyfile no.pem", "ssl_certfile='no.pem' cannot be read"),
        ("--max-connections 15", "max_connections=15 must be 16 or more"),
        ("--log-level LOUD", "log_level='LOUD'"),
        ("./no-such-folder", "no-such-folder"),
        ("--allowed-media-hosts http://x", "bare hosts"),
    ],
)
def test_settings_that_cannot_be_are_one_line_before_anything_is_loaded(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "api_server", *line.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def pem_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder that one is in: two pairs, an RSA key, an encrypted key, damaged ones, junk and a pipe."""
    if which("openssl") is None:
        pytest.skip("making a certificate needs the openssl command")
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> None:
        run_command(["openssl", *line.split()], check=True)

    for name in ("a", "b"):
        make = "req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=x"
        run(f"{make} -keyout {name}.key -out {name}.pem")
    run("genrsa -out rsa.key 2048")
    run("pkey -in a.key -aes256 -passout pass:x -out encrypted.key")
    for name in ("a.pem", "a.key"):
        first, second, *rest = Path(name).read_text().splitlines()
        Path(f"damaged-{name}").write_text("\n".join((first, "AAAA" + second[4:], *rest)))
    Path("junk").write_text("hello")
    os.mkfifo("pipe")


@pytest.mark.usefixtures("pem_files")
@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("none", "a.key", "ssl_certfile='none' cannot be read: No such file"),
        ("a.pem", "none", "ssl_keyfile='none' cannot be read: No such file"),
        ("pipe", "a.key", "ssl_certfile='pipe' cannot be read: it is a folder, a pipe"),
        ("a.pem", ".", "ssl_keyfile='.' cannot be read: it is a folder, a pipe"),
        ("junk", "a.key", "ssl_certfile='junk' holds no certificate"),
        ("a.key", "a.pem", "ssl_certfile='a.key' holds no certificate"),
        ("a.pem", "b.pem", "ssl_keyfile='b.pem' holds no private key"),
        ("a.pem", "b.key", "ssl_keyfile='b.key' is damaged or not the key of ssl_certfile='a.pem'"),
        ("a.pem", "rsa.key", "ssl_keyfile='rsa.key' is damaged or not the key of ssl_certfile='a.pem'"),
        ("damaged-a.pem", "a.key", "ssl_certfile='damaged-a.pem' holds a damaged certificate"),
        ("a.pem", "damaged-a.key", "ssl_keyfile='damaged-a.key' is damaged"),
        ("a.pem", "encrypted.key", "ssl_keyfile='encrypted.key' is encrypted"),
    ],
)
def test_a_certificate_or_key_that_cannot_serve_is_named_before_anything_is_loaded(
    certificate: str, key: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["serve", "api_server", "./no-such-folder", "--ssl-certfile", certificate, "--ssl-keyfile", key]
    assert cli.main(line) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("pem_files")
def test_a_certificate_and_its_key_are_taken() -> None:
    assert ServerConfig(ssl_certfile="a.pem", ssl_keyfile="a.key").create_tls() is not None
    assert ServerConfig().create_tls() is None


def test_no_event_waits_for_the_receipt_of_the_last() -> None:
    with (
        bind(ServerConfig(server_port=0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_socket_that_is_handed_over_is_listened_at(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given, bind(ServerConfig(server_fd=os.dup(given.fileno()))) as taken:
        assert taken.getsockname() == given.getsockname()
    with socket.socket(socket.AF_UNIX) as local, socket.socket() as silent:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        for other in (local, silent):
            with pytest.raises(ConfigError, match="no TCP socket that listens"):
                bind(ServerConfig(server_fd=other.fileno()))


def create_record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("tilewise.access", logging.INFO, "", 0, message, arguments, None)


def test_a_json_line_holds_the_facts_and_stays_one_line() -> None:
    record = create_record("%(method)s of\n%(path)s", {"method": "GET", "path": "\x1b/\u2028"})
    line = LineFormatter(is_json=True).format(record)
    assert len(line.splitlines()) == 1
    said = json.loads(line)
    assert (said["level"], said["logger"], said["method"], said["path"]) == (
        "INFO",
        "tilewise.access",
        "GET",
        "\x1b/\u2028",
    )


def test_a_text_line_holds_no_terminal_command_and_no_second_line() -> None:
    line = LineFormatter(is_json=False).format(create_record("a%s", "\x1b[2J\nFORGED"))
    assert "\x1b" not in line
    assert "\n" not in line


def test_no_line_of_a_traceback_looks_like_a_record() -> None:
    try:
        raise ValueError("a\n2026-11-25T00:00:00.000Z INFO    tilewise: FORGED\r\x1b[2J\x9b")
    except ValueError:
        record = create_record("it failed")
        record.exc_info = sys.exc_info()
    first, *rest = LineFormatter(is_json=False).format(record).splitlines()
    assert first.endswith("tilewise.access: it failed")
    assert "    2026-11-25T00:00:00.000Z INFO    tilewise: FORGED[2J" in rest
    assert all(line.startswith("    ") for line in rest)
