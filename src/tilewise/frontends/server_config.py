"""Where and to whom a server answers: one frozen value, which the command line's flags come from."""

import os
from dataclasses import dataclass
from pathlib import Path

from tilewise.errors import ConfigError

_MAX_KEYS_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where and to whom a server answers; the command line's flags come from these fields.

    Raises:
        ConfigError: a field is outside its range.
    """

    server_name: str = "127.0.0.1"
    server_port: int = 23333
    model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    api_keys_file: str | None = None
    allow_origins: tuple[str, ...] = ()
    max_queued: int = 256
    allowed_local_media_path: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    log_format: str = "text"

    def __post_init__(self) -> None:
        """Check every field."""
        if not 0 <= self.server_port <= 65535:
            raise ConfigError(f"server_port={self.server_port} must be in [0, 65535].", param="server_port")
        if self.max_queued < 0:
            raise ConfigError(f"max_queued={self.max_queued} must be 0 or more.", param="max_queued")
        if self.log_format not in ("text", "json"):
            raise ConfigError(f"log_format={self.log_format!r:.80} must be text or json.", param="log_format")
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
                with Path(self.api_keys_file).open("rb") as file:
                    keys += file.read(_MAX_KEYS_FILE_BYTES).decode(errors="replace").splitlines()
            except OSError as error:
                raise ConfigError(f"The keys' file cannot be read: {error.strerror}.", param="api_keys_file") from None
            if not any(key.strip() for key in keys):
                raise ConfigError("The keys' file holds no key; write one a line.", param="api_keys_file")
        stripped = dict.fromkeys(key.strip() for key in keys if key.strip())
        if any(not key.isascii() or not key.isprintable() or " " in key for key in stripped):
            raise ConfigError("API keys must be printable ASCII characters without spaces.", param="api_keys")
        return tuple(stripped)
