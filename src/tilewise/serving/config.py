"""Where and to whom a server answers: one frozen value, which the command line's flags come from."""

import os
import ssl
from dataclasses import dataclass

from tilewise.config import Allowed, check_fields
from tilewise.errors import ConfigError
from tilewise.files import read_file

_MAX_FILE_BYTES = 1 << 20
# Connections of which some are kept for /health and /ready; fewer would leave nobody else any.
MIN_CONNECTIONS = 16
# One picture.
MIN_BODY_MEMORY_BYTES = 1 << 20
_ALLOWED: dict[str, Allowed] = {
    "server_port": (lambda value: 0 <= value <= 65535, "in [0, 65535]"),
    "server_fd": (lambda value: value is None or value >= 3, "3 or more"),
    "max_queued": (lambda value: value >= 0, "0 or more"),
    "max_connections": (lambda value: value >= MIN_CONNECTIONS, f"{MIN_CONNECTIONS} or more"),
    "body_memory_bytes": (lambda value: value >= MIN_BODY_MEMORY_BYTES, f"{MIN_BODY_MEMORY_BYTES} or more"),
    "min_body_bytes_per_s": (lambda value: value >= 1, "1 or more"),
    "log_format": (lambda value: value in ("text", "json"), "text or json"),
}


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where and to whom a server answers; the command line's flags come from these fields.

    Raises:
        ConfigError: a field is outside its range.
    """

    server_name: str = "127.0.0.1"
    server_port: int = 23333
    server_fd: int | None = None
    model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    api_keys_file: str | None = None
    allow_origins: tuple[str, ...] = ()
    max_queued: int = 256
    # Above max_queued and the default max_batch_size together, so that a full queue can say so.
    max_connections: int = 512
    body_memory_bytes: int = 512 << 20
    # A phone on a weak line sends some 10 KiB/s.
    min_body_bytes_per_s: int = 4096
    allowed_local_media_path: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    log_format: str = "text"

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self, _ALLOWED)
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ConfigError("Give both ssl_certfile and ssl_keyfile, or neither.", param="ssl_certfile")

    def read_keys(self) -> tuple[str, ...]:
        """The keys of flags, of TILEWISE_API_KEYS (between commas) and of the file (one a line).

        Raises:
            ConfigError: the file cannot be read, or a key is not printable ASCII without spaces.
        """
        keys = [*self.api_keys, *os.environ.get("TILEWISE_API_KEYS", "").split(",")]
        if self.api_keys_file is not None:
            try:
                keys += read_file(self.api_keys_file, _MAX_FILE_BYTES).decode(errors="replace").splitlines()
            except OSError as error:
                raise ConfigError(
                    f"The keys' file cannot be read: {error.strerror}; give --api-keys-file a text file, a key a line.",
                    param="api_keys_file",
                ) from None
            if not any(key.strip() for key in keys):
                raise ConfigError("The keys' file holds no key; write one a line.", param="api_keys_file")
        stripped = dict.fromkeys(key.strip() for key in keys if key.strip())
        if any(not key.isascii() or not key.isprintable() or " " in key for key in stripped):
            raise ConfigError("API keys must be printable ASCII characters without spaces.", param="api_keys")
        return tuple(stripped)

    def create_tls(self) -> ssl.SSLContext | None:
        """What https is spoken with, or None for http.

        Raises:
            ConfigError: a file is missing or is not what its flag says, or the key is another certificate's.
        """
        if self.ssl_certfile is None or self.ssl_keyfile is None:
            return None
        certificate = _read_pem("ssl_certfile", self.ssl_certfile, "CERTIFICATE")
        if "ENCRYPTED" in _read_pem("ssl_keyfile", self.ssl_keyfile, "PRIVATE KEY"):
            what = "is encrypted, and nobody is there to type its passphrase; write it without one: "
            raise _unfit("ssl_keyfile", self.ssl_keyfile, what + "openssl pkey -in OLD -out NEW.")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificate)
        except ssl.SSLError:
            raise _unfit("ssl_certfile", self.ssl_certfile, "holds a damaged certificate; make it anew.") from None
        try:
            context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, password="")
        except ssl.SSLError as error:
            reason = error.reason or "unreadable"
            what = f"is damaged or not the key of ssl_certfile={self.ssl_certfile!r:.200} ({reason})"
            raise _unfit("ssl_keyfile", self.ssl_keyfile, f"{what}; give the pair that was made together.") from None
        return context


def _read_pem(name: str, path: str, kind: str) -> str:
    try:
        text = read_file(path, _MAX_FILE_BYTES).decode("ascii", errors="replace")
    except OSError as error:
        raise _unfit(name, path, f"cannot be read: {error.strerror}; give a PEM file.") from None
    if f"{kind}-----" not in text:
        raise _unfit(name, path, f"holds no {kind.lower()}; give one in PEM format.")
    return text


def _unfit(name: str, path: str, what: str) -> ConfigError:
    return ConfigError(f"{name}={path!r:.200} {what}", param=name)
