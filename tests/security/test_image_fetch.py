"""Rows 1-4: what a URL may reach, and how long and how much a host may answer."""

import base64
import contextlib
import gzip
import io
import socket
import ssl
import threading
import time
from pathlib import Path
from shutil import which

import pytest
from PIL import Image

from tests.messages import mentions
from tests.processes import PATIENCE_S, run_command
from tilewise.errors import ImageError, ImageFetchError, ImageTooLargeError
from tilewise.inputs.media.address_guard import is_global, parse_url
from tilewise.inputs.media.fetch import fetch
from tilewise.inputs.media.policy import ImageLimits, ImagePolicy
from tilewise.inputs.media.sources import load_image

PUBLIC = "93.184.215.14"


class Canary:
    """A loopback server that counts connections and answers each with what its script sends."""

    def __init__(self, script=None, family=socket.AF_INET, tls: ssl.SSLContext | None = None):
        self.requests: list[bytes] = []
        self.num_hits = 0
        self._script = script or (lambda connection, path: connection.sendall(answer(picture())))
        self._tls = tls
        self._closing = threading.Event()
        self._listener = socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def url(self, path="/a.png", host="127.0.0.1", scheme="http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def is_closing(self) -> bool:
        return self._closing.is_set()

    def _serve(self):
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if self.is_closing():
                    return
                self.num_hits += 1
                with contextlib.suppress(OSError):
                    self._answer(connection)

    def _answer(self, plain: socket.socket):
        plain.settimeout(PATIENCE_S)
        connection = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
        with connection:
            request = connection.recv(65536)
            self.requests.append(request)
            self._script(connection, request.partition(b" ")[2].partition(b" ")[0].decode("latin-1"))

    def close(self):
        self._closing.set()
        with socket.create_connection(self._listener.getsockname()[:2]):
            self._thread.join()
        self._listener.close()


@pytest.fixture
def serve():
    servers: list[Canary] = []

    def start(script=None, **options) -> Canary:
        servers.append(Canary(script, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


def answer(body: bytes, *headers: str, status="200 OK", length: int | None = None) -> bytes:
    length_header = f"Content-Length: {len(body) if length is None else length}"
    return "\r\n".join((f"HTTP/1.1 {status}", length_header, *headers, "", "")).encode() + body


def policy(**limits) -> ImagePolicy:
    return ImagePolicy(limits=ImageLimits(**limits), allowed_media_hosts=("127.0.0.1", "::1"))


SPELLINGS = [
    "127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "127.000.000.001", "127.0.0.2", "127.255.255.254",
    "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7f.1", "0177.0.0.1", "017700000001", "0177.0.1", "0",
    "0.0.0.0", "00.00.00.00", "0x0", "localhost", "LOCALHOST", "localhost.", "LocalHost.", "１２７.０.０.１",
    "127。0。0。1", "①②⑦.0.0.1", "ⓛocalhost", "[::1]", "[0:0:0:0:0:0:0:1]", "[::]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
    "[2002:7f00:0001::1]", "[::ffff:0:127.0.0.1]", "[::1%25lo]", "127.0.0.1%00", "127.0.0.%31",
    "user@127.0.0.1", "public.example@127.0.0.1", "public.example\\@127.0.0.1", "127.0.0.1\\@public.example",
    "[::ffff:169.254.169.254]",
]  # fmt: skip


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_loopback_reaches_it(host, serve):
    canaries = [serve(), serve(family=socket.AF_INET6)]
    for canary in canaries:
        with pytest.raises(ImageFetchError):
            load_image(canary.url(host=host), ImagePolicy(limits=ImageLimits(fetch_timeout_s=2)))
        assert canary.num_hits == 0


def test_the_canary_would_have_counted(serve):
    for canary, host in ((serve(), "127.0.0.1"), (serve(family=socket.AF_INET6), "[::1]"), (serve(), "0x7f.1")):
        assert load_image(canary.url(host=host), policy()).size == (4, 2)
        assert canary.num_hits == 1


@pytest.mark.parametrize(
    "url",
    ["http://a\\@127.0.0.1/", "http://127.0.0.1\\.public.example/", "http:\\\\127.0.0.1/", "http://127.0.0.1#@a/"],
)
def test_what_two_parsers_read_in_two_ways_reaches_nothing(url, serve):
    canary = serve()
    with pytest.raises(ImageFetchError):
        load_image(url.replace("127.0.0.1", f"127.0.0.1:{canary.port}"))
    assert canary.num_hits == 0


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200", "169.254.169.254", "168.63.129.16",
        "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.2.3", "240.0.0.1",
        "255.255.255.255", "0.0.0.0", "192.88.99.1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "2001:db8::1",
        "2001::1", "3fff::1", "100::1", "64:ff9b:1::1", "2002:a00:1::", "::ffff:10.0.0.1", "::", "::1", "4000::1",
        "not an address",
    ],
)  # fmt: skip
def test_internal_and_metadata_addresses_are_not_global(address):
    assert not is_global(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:21f:cb07::1", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_global(address):
    assert is_global(address)


def test_a_resolver_that_flips_is_asked_once_and_its_first_answer_is_connected(serve):
    canary = serve()
    answers = [["127.0.0.3"], ["127.0.0.1"]]
    only_first = ImagePolicy(allowed_media_hosts=("127.0.0.3",))
    with pytest.raises(ImageFetchError, match="unreachable"):  # nobody listens on 127.0.0.3
        fetch(canary.url(host="rebind.example"), only_first, lambda host, port: answers.pop(0))
    assert (canary.num_hits, answers) == (0, [["127.0.0.1"]])


def test_one_internal_address_among_public_ones_refuses_the_host(serve):
    canary = serve()
    with pytest.raises(ImageFetchError, match="public internet"):
        fetch(canary.url(host="mixed.example"), ImagePolicy(), lambda host, port: [PUBLIC, "127.0.0.1"])
    assert canary.num_hits == 0


def test_an_allowed_name_is_connected_at_its_address_with_its_own_host_header(serve):
    canary = serve()
    allowed = ImagePolicy(allowed_media_hosts=("Pictures.Internal.",))
    body = fetch(
        canary.url("/图 1.png?q=é".replace(" ", "%20"), "pictures.internal"), allowed, lambda *_: ["127.0.0.1"]
    )
    assert body == picture()
    (request,) = canary.requests
    assert request.startswith(b"GET /%E5%9B%BE%201.png?q=%C3%A9 HTTP/1.1\r\n")
    assert f"Host: pictures.internal:{canary.port}\r\n".encode() in request
    assert b"Accept-Encoding: identity\r\n" in request


def test_tls_names_the_host_and_not_the_address(serve):
    canary = serve()
    with pytest.raises(ImageFetchError):
        fetch(canary.url(host="pictures.example", scheme="https"), policy(), lambda *_: ["127.0.0.1"])
    assert b"pictures.example" in canary.requests[0]


@pytest.mark.skipif(which("openssl") is None, reason="making a certificate needs the openssl command")
def test_the_certificate_must_be_trusted_and_bear_the_name(serve, tmp_path: Path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=pictures.example", "-addext", "subjectAltName=DNS:pictures.example"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    run_command([*command, *subject, "-keyout", key, "-out", certificate], check=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    canary = serve(tls=tls)

    def get(host: str) -> bytes:
        return fetch(canary.url(host=host, scheme="https"), policy(), lambda *_: ["127.0.0.1"])

    with pytest.raises(ImageFetchError, match="certificate"):
        get("pictures.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert get("pictures.example") == picture()
    with pytest.raises(ImageFetchError, match="certificate"):
        get("other.example")


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.2:{port}/x", "//127.0.0.2:{port}/x", "http://a\\@127.0.0.2:{port}/", "file:///etc/passwd"],
)
def test_a_redirect_to_what_is_not_allowed_is_not_followed(location, serve):
    target = serve()
    first = serve(
        lambda connection, _: connection.sendall(
            answer(b"", "Location: " + location.format(port=target.port), status="302 Found")
        )
    )
    with pytest.raises(ImageFetchError):
        load_image(first.url(), policy())
    assert (first.num_hits, target.num_hits) == (1, 0)


@pytest.mark.parametrize(("num_redirects", "is_fine"), [(3, True), (4, False)])
def test_three_redirects_are_followed_and_a_fourth_is_not(num_redirects, is_fine, serve):
    def script(connection, path):
        hop = int(path.strip("/"))
        moved = answer(b"", f"Location: /{hop + 1}", status="301 Moved")
        connection.sendall(answer(picture()) if hop == num_redirects else moved)

    canary = serve(script)
    with contextlib.nullcontext() if is_fine else pytest.raises(ImageFetchError, match=mentions(3)):
        assert load_image(canary.url("/0"), policy()).size == (4, 2)
    assert canary.num_hits == 4


@pytest.mark.parametrize("location", ["/图.png", "/%E5%9B%BE.png", "//127.0.0.1:{port}/图.png"])
def test_a_redirect_may_hold_characters_beyond_ascii(location, serve):
    def script(connection, path):
        moved = answer(b"", "Location: " + location.format(port=canary.port), status="302 Found")
        connection.sendall(answer(picture()) if path == "/%E5%9B%BE.png" else moved)

    canary = serve(script)
    assert load_image(canary.url("/0"), policy()).size == (4, 2)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], "without saying where"),
        (["Location:"], "without saying where"),
        (["Location:   "], "without saying where"),
        (["Location: http://["], "could not be fetched"),
        (["Location: /a b"], "holds a blank"),
    ],
)
def test_a_redirect_to_nowhere_is_one_clear_error(headers, reason, serve):
    canary = serve(lambda connection, _: connection.sendall(answer(b"", *headers, status="302 Found")))
    with pytest.raises(ImageFetchError, match=reason):
        load_image(canary.url(), policy())
    assert canary.num_hits == 1


def drip(connection, head: bytes, canary_is_closing) -> None:
    connection.sendall(head)
    while not canary_is_closing():
        connection.sendall(b"x")
        time.sleep(0.02)


def load_within_short(limit: str, canary: Canary) -> str:
    """How loading fails by a limit that is short, but as long as this machine takes to reach the host."""
    limit_s = 0.2
    while True:
        with pytest.raises(ImageFetchError) as caught:
            load_image(canary.url(), policy(**{limit: limit_s}))
        if canary.requests:
            return str(caught.value)
        limit_s *= 2


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX: ", answer(b"", length=1_000_000)])
@pytest.mark.parametrize(
    ("limit", "reason"), [("fetch_timeout_s", "too slow"), ("rate_grace_s", "below 1024 bytes a second")]
)
def test_a_drip_in_status_headers_or_body_ends_at_the_deadline_or_the_minimum_rate(head, limit, reason, serve):
    canary = serve(lambda connection, _: drip(connection, head, lambda: canary.is_closing()))
    assert reason in load_within_short(limit, canary)


def test_a_silent_host_ends_at_the_deadline(serve):
    silent = serve(lambda connection, _: connection.recv(1))
    assert "too slow" in load_within_short("fetch_timeout_s", silent)


def test_a_resolver_that_hangs_ends_at_the_deadline():
    release = threading.Event()
    with pytest.raises(ImageFetchError, match=mentions("host", "found")):
        fetch("http://slow.example/", policy(fetch_timeout_s=0.2), lambda *_: release.wait(PATIENCE_S) and [])
    release.set()


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])
def test_an_endless_body_is_cut_at_the_byte_limit(head, serve):
    sent = 0

    def script(connection, _):
        nonlocal sent
        connection.sendall(head)
        while True:
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n" if b"chunked" in head else b"x" * 65536)
            sent += 65536

    with pytest.raises(ImageTooLargeError, match="1000000 bytes"):
        load_image(serve(script).url(), policy(max_bytes=1_000_000))
    assert sent < 20_000_000


@pytest.mark.parametrize(
    ("head", "more"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    ],
)
def test_endless_headers_interim_replies_and_trailers_are_cut(head, more, serve):
    sent = 0

    def script(connection, _):
        nonlocal sent
        connection.sendall(head)
        while True:
            connection.sendall(more * 4000)
            sent += len(more) * 4000

    with pytest.raises((ImageFetchError, ImageTooLargeError)):
        load_image(serve(script).url(), policy(max_bytes=1000))
    assert sent < 20_000_000


def test_a_compressed_body_is_refused(serve):
    bomb = gzip.compress(bytes(10_000_000))
    canary = serve(lambda connection, _: connection.sendall(answer(bomb, "Content-Encoding: gzip")))
    with pytest.raises(ImageFetchError, match="compressed"):
        load_image(canary.url(), policy())


@pytest.mark.parametrize(
    ("length", "error"),
    [(10, ImageError), (10**6, ImageFetchError), (10**15, ImageTooLargeError), (-1, None)],
)
def test_a_lying_content_length_is_harmless(length, error, serve):
    canary = serve(lambda connection, _: connection.sendall(answer(picture(), length=length)))
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        assert load_image(canary.url(), policy()).size == (4, 2)


@pytest.mark.parametrize(
    "reply", [b"", b"junk\r\n\r\n", b"HTTP/1.1 404 Not Found\r\n\r\n", b"HTTP/9 x\r\n", b"\xff" * 99]
)
def test_a_host_that_does_not_speak_http_or_has_nothing_is_an_image_fetch_error(reply, serve):
    canary = serve(lambda connection, _: connection.sendall(reply))
    with pytest.raises(ImageFetchError):
        load_image(canary.url(), policy())


def test_proxy_variables_are_ignored(serve, monkeypatch):
    proxy, canary = serve(), serve()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url(""))
    assert load_image(canary.url(), policy()).size == (4, 2)
    assert (proxy.num_hits, canary.num_hits) == (0, 1)


@pytest.mark.parametrize(
    "url",
    ["http://", "http:///a", "https://a:99999/", "http://a b/", "http://a\n/", "ftp://a/", "gopher://a/", "http://u:p@a/",
     "http://[::1/", "http://a..b/", "http://" + "a" * 64 + ".example/", "http://a/" + "x" * 9000],
)  # fmt: skip
def test_a_malformed_url_is_refused_before_anything_is_resolved(url):
    def never(host: str, port: int) -> list[str]:
        raise AssertionError("resolved")

    with pytest.raises(ImageFetchError):
        fetch(url, ImagePolicy(), never)


def test_a_parsed_url_is_its_own_normal_form():
    target = parse_url("HTTPS://Ex\u00e4mple.org.:443/a b".replace(" ", "%20") + "?x=1#f")
    assert target.url == "https://xn--exmple-cua.org/a%20b?x=1"
    assert parse_url(target.url) == target


def test_no_url_is_ever_taken_from_the_picture_or_its_text(serve):
    canary = serve()
    with pytest.raises(ImageError):
        load_image(base64.b64encode(canary.url().encode()))
    assert canary.num_hits == 0
