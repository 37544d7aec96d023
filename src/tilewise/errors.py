"""Every error Tilewise raises on purpose, each with an HTTP status and a stable code.

    TilewiseError                 500 internal_error
    ├── ConfigError               400 invalid_config       a setting that is unknown, contradictory or not supported
    ├── CheckpointError           400 invalid_checkpoint   a model folder that cannot be served
    │   ├── UnsupportedModelError 400 unsupported_model    an architecture or flavour outside the family
    │   └── DownloadError         502 download_failed      the hub could not be reached or refused
    ├── InputError                400 invalid_request      a request that cannot be answered as it is
    │   ├── ImageError            400 invalid_image        bytes that are not a picture we accept
    │   │   └── ImageTooLargeError 413 image_too_large     more bytes, pixels or aspect than the limits
    │   ├── ImageFetchError       400 image_fetch_failed   a URL that is refused or did not answer in time
    │   └── PromptTooLongError    400 context_length_exceeded
    ├── CapacityError             503 capacity             memory cannot hold what was asked, or not now
    │   └── QueueFullError        429 queue_full           too many requests are waiting already
    └── EngineError               500 engine_error         the engine failed or is gone

A message says what was given, what is allowed, and what to do. It never holds an address, a traceback or
a path that the caller did not give.
"""


class TilewiseError(Exception):
    """Root of the tree; `status` is the HTTP status, `code` the stable machine-readable name."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        """Keep `message` for people and `param`, the name of the offending field, for programs."""
        super().__init__(message)
        self.param = param

    def __init_subclass__(cls, *, code: str | None = None, status: int | None = None) -> None:
        cls.code, cls.status = code or cls.code, status or cls.status


class ConfigError(TilewiseError, code="invalid_config", status=400):
    """A setting is unknown, contradictory or not supported here."""


class CheckpointError(TilewiseError, code="invalid_checkpoint", status=400):
    """A model folder is missing parts, holds malformed ones, or does not fit its config.json."""


class UnsupportedModelError(CheckpointError, code="unsupported_model"):
    """The checkpoint is well-formed but of an architecture or flavour that Tilewise does not serve."""


class DownloadError(CheckpointError, code="download_failed", status=502):
    """A model hub could not be reached, refused, or does not hold what was asked."""


class InputError(TilewiseError, code="invalid_request", status=400):
    """A request cannot be answered as it is."""


class ImageError(InputError, code="invalid_image"):
    """The bytes are not a picture in one of the accepted formats."""


class ImageTooLargeError(ImageError, code="image_too_large", status=413):
    """The picture has more bytes, pixels or aspect than the limits allow."""


class ImageFetchError(InputError, code="image_fetch_failed"):
    """A picture's address is refused, or did not deliver within the limits."""


class PromptTooLongError(InputError, code="context_length_exceeded"):
    """Prompt and answer do not fit in the session length."""


class CapacityError(TilewiseError, code="capacity", status=503):
    """Memory cannot hold what was asked, or the engine is not ready."""


class QueueFullError(CapacityError, code="queue_full", status=429):
    """Too many requests are waiting already; this one may be sent again later."""


class EngineError(TilewiseError, code="engine_error"):
    """The engine failed on this request, or is gone."""
