"""What a picture may cost and where it may come from: data only, no Pillow, no sockets.

`ImageLimits` bounds bytes, pixels and time; `ImagePolicy` adds the places that may be read. The defaults fit a
library whose caller owns the machine; a server that answers strangers sets `allowed_local_media_path`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import cast

from tilewise.errors import ConfigError, ImageTooLargeError, InputError

MIB = 1 << 20
_MOST = 1 << 33


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds on one picture, and with `_request` on those of one request, checked before that much is allocated.

    Units: `_bytes`, `_s` and pixels by name. `max_aspect_ratio` holds above `aspect_free_pixels` pixels only, so
    that thin strips of modest size pass. Decoding ends after `decode_cpu_s` of CPU time, which is the picture's fault,
    or `decode_timeout_s` by the clock, which is not. Waiting for a decoder ends after `decode_wait_s`, unless a fetch
    context says otherwise. A transfer slower than `min_bytes_per_s`, after `rate_grace_s`, is cut.

    Raises:
        ConfigError: a bound is not a positive number of its type; `param` names it.
    """

    max_bytes: int = 20 * MIB
    max_pixels: int = 50_000_000
    max_side: int = 32_768
    max_aspect_ratio: float = 200.0
    aspect_free_pixels: int = 1_000_000
    decode_cpu_s: float = 2.0
    decode_timeout_s: float = 10.0
    decode_wait_s: float = 60.0
    fetch_timeout_s: float = 10.0
    min_bytes_per_s: int = 1024
    rate_grace_s: float = 2.0
    max_redirects: int = 3
    max_request_pixels: int = 100_000_000
    max_request_images: int = 16

    def __post_init__(self) -> None:
        """Refuse bounds that would switch a limit off."""
        for bound in fields(self):
            value = getattr(self, bound.name)
            kinds, kind = ((int, float), "number") if bound.type is float else (int, "whole number")
            lowest = 0 if bound.name == "max_redirects" else 1e-3
            if isinstance(value, bool) or not isinstance(value, kinds) or not lowest <= value <= _MOST:
                raise ConfigError(f"{bound.name}={value!r:.80} must be a positive {kind} up to 2^33.", param=bound.name)

    def check_bytes(self, num_bytes: int) -> None:
        """Hold a picture's encoded size to `max_bytes`.

        Raises:
            ImageTooLargeError: it is larger.
        """
        if num_bytes > self.max_bytes:
            raise ImageTooLargeError(f"The picture has more than the {self.max_bytes} bytes allowed. Scale it down.")

    def check_request(self, num_images: int, num_pixels: int = 0) -> None:
        """Hold the pictures of one request, or of one chat, to what they may have together.

        Raises:
            InputError: there are more of them.
            ImageTooLargeError: they have more pixels.
        """
        if num_images > self.max_request_images:
            text = f"The request has {num_images} pictures; at most {self.max_request_images} are allowed."
            raise InputError(text, param="messages")
        if num_pixels > self.max_request_pixels:
            raise ImageTooLargeError(
                f"Up to this one the request's pictures have {num_pixels} pixels; at most {self.max_request_pixels} "
                "together are allowed. Scale them down or send fewer."
            )


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """Limits, and the places that pictures may be read from.

    `allowed_media_hosts` names hosts or addresses that may be fetched from though they are not on the public
    internet. `allowed_local_media_path` is the folder that local files must lie in once symbolic links are
    followed: "/" allows every file, None allows none.

    Raises:
        ConfigError: `allowed_media_hosts` is not a list of bare hosts; `param` names the field.
    """

    limits: ImageLimits = field(default_factory=ImageLimits)
    allowed_media_hosts: tuple[str, ...] = ()
    allowed_local_media_path: str | None = "/"

    def __post_init__(self) -> None:
        """Bring hosts into the one form that they are compared in."""
        given = cast(object, self.allowed_media_hosts)
        hosts: list[str] = []
        for name in cast(Sequence[object], given) if isinstance(given, (tuple, list)) else (None,):
            host = name.strip().lower().strip("[]").rstrip(".") if isinstance(name, str) else ""
            if not host or "/" in host or "@" in host or host.count(":") == 1:
                raise ConfigError(
                    f"allowed_media_hosts is {given!r:.200}; give a list of bare hosts or addresses, without scheme, "
                    "port or path.",
                    param="allowed_media_hosts",
                )
            hosts.append(host)
        object.__setattr__(self, "allowed_media_hosts", tuple(hosts))
