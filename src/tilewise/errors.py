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
    ├── CapacityError             503 capacity             memory or queue cannot hold what was asked
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


class ConfigError(TilewiseError):
    """A setting is unknown, contradictory or not supported here."""

    status = 400
    code = "invalid_config"


class CheckpointError(TilewiseError):
    """A model folder is missing parts, holds malformed ones, or does not fit its config.json."""

    status = 400
    code = "invalid_checkpoint"


class UnsupportedModelError(CheckpointError):
    """The checkpoint is well-formed but of an architecture or flavour that Tilewise does not serve."""

    code = "unsupported_model"


class DownloadError(CheckpointError):
    """A model hub could not be reached, refused, or does not hold what was asked."""

    status = 502
    code = "download_failed"


class InputError(TilewiseError):
    """A request cannot be answered as it is."""

    status = 400
    code = "invalid_request"


class ImageError(InputError):
    """The bytes are not a picture in one of the accepted formats."""

    code = "invalid_image"


class ImageTooLargeError(ImageError):
    """The picture has more bytes, pixels or aspect than the limits allow."""

    status = 413
    code = "image_too_large"


class ImageFetchError(InputError):
    """A picture's address is refused, or did not deliver within the limits."""

    code = "image_fetch_failed"


class PromptTooLongError(InputError):
    """Prompt and answer do not fit in the session length."""

    code = "context_length_exceeded"


class CapacityError(TilewiseError):
    """Memory or the queue cannot hold what was asked."""

    status = 503
    code = "capacity"


class EngineError(TilewiseError):
    """The engine failed on this request, or is gone."""

    code = "engine_error"
