"""Finds a model's folder: the embedded demo, a local folder or symbolic link, or a download from a hub.

Owns which files are ever fetched (safetensors, JSON, tokenizers; never code or pickles) and how a hub's
failures read. The hub's own library keeps the cache and does mirrors (HF_ENDPOINT), offline mode
(HF_HUB_OFFLINE), tokens (HF_TOKEN), resuming and the progress bar.
"""

import importlib
import os
import re
from pathlib import Path
from typing import Any, cast

from tilewise.errors import CheckpointError, ConfigError, DownloadError

_WITHOUT_WEIGHTS = ("*.json", "*.model", "merges.txt")
ALLOW_PATTERNS = ("*.safetensors", *_WITHOUT_WEIGHTS)
# Both hubs match with fnmatch, whose * crosses folders; a model's own files lie at the top.
IGNORE_PATTERNS = ("*/*",)

_MODELSCOPE_PREFIX = "modelscope:"
_MODELSCOPE_VARIABLE = "TILEWISE_USE_MODELSCOPE"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def find_model(
    model: str | None,
    *,
    revision: str | None = None,
    download_dir: str | os.PathLike[str] | None = None,
    has_weights: bool = True,
) -> Path:
    """Return the folder of `model`, downloading it if it is a hub id (`org/name`) that is not cached.

    Without `has_weights` only its JSON and tokenizer files are fetched: enough to plan, and for dummy weights.

    `None` is the embedded demo. An existing path wins over a hub id. `modelscope:org/name`, or any id while
    TILEWISE_USE_MODELSCOPE=1, comes from ModelScope. `download_dir` replaces the hub's own cache folder.

    Raises:
        CheckpointError: no such folder, or one without config.json.
        ConfigError: `revision` or `download_dir` was given for what is not downloaded.
        DownloadError: the hub was not reachable, refused, or does not hold a model in safetensors.
    """
    model = None if model is None else os.path.expanduser(model)
    if model is not None and not os.path.lexists(model):
        patterns = ALLOW_PATTERNS if has_weights else _WITHOUT_WEIGHTS
        return _download(model, revision, None if download_dir is None else str(download_dir), patterns)
    for name, value in (("revision", revision), ("download_dir", download_dir)):
        if value is not None:
            text = f"{name}={str(value)!r} is for hub ids only; {model or 'the embedded model'} is local. Leave it out."
            raise ConfigError(text, param=name)
    if model is None:
        # Inside: the demo ranks above this module, which knows only that there is one.
        from tilewise.demo import model_folder

        return model_folder()
    if not os.path.isdir(model):
        what = "a file" if os.path.exists(model) else "a symbolic link to nothing"
        raise CheckpointError(f"{model!r:.200} is {what}; give the model's folder, or a hub id (org/name).")
    if not os.path.isfile(os.path.join(model, "config.json")):
        raise CheckpointError(f"The folder {model!r:.200} holds no config.json; give the folder that does.")
    return Path(model)


def _download(model: str, revision: str | None, download_dir: str | None, patterns: tuple[str, ...]) -> Path:
    hub_id = model.removeprefix(_MODELSCOPE_PREFIX)
    if not _HUB_ID.fullmatch(hub_id):
        raise CheckpointError(
            f"{model!r:.200} is neither an existing folder nor a hub id (org/name, or modelscope:org/name); "
            "check the path."
        )
    from_modelscope = hub_id != model or os.environ.get(_MODELSCOPE_VARIABLE, "").lower() in ("1", "true", "yes", "on")
    fetch = _fetch_from_modelscope if from_modelscope else _fetch_from_huggingface
    kinds = {"allow_patterns": list(patterns), "ignore_patterns": list(IGNORE_PATTERNS)}
    folder = Path(fetch(hub_id, revision, cache_dir=download_dir, **kinds))
    has_all = any(folder.glob("*.safetensors")) or patterns is not ALLOW_PATTERNS
    if not (folder / "config.json").is_file() or not has_all:
        raise DownloadError(
            f"{hub_id} was found but holds no config.json with .safetensors weights; "
            "choose a repository or revision in safetensors (pickled .bin weights are never fetched)."
        )
    return folder


def _reason(error: BaseException) -> str:
    """The first line of what a library or the system said, without advice and file names."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    return f"{type(error).__name__}: {said.partition(chr(10))[0]:.200}"


def _fetch_from_huggingface(hub_id: str, revision: str | None, **options: Any) -> str:
    from huggingface_hub import errors as hub_errors
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    try:
        return cast(Any, snapshot_download)(hub_id, revision=revision, **options)
    except hub_errors.HFValidationError as error:
        raise CheckpointError(f"{hub_id!r} is not a valid hub id ({_reason(error)}).") from error
    except Exception as error:  # The library lets its HTTP client's and the disk's errors through.
        known: dict[type[Exception], str] = {  # A gated repository is a kind of one that is not found.
            hub_errors.GatedRepoError: f"{hub_id} is gated: accept its terms on the hub's page, then set HF_TOKEN to "
            "a token that may read it.",
            hub_errors.RepositoryNotFoundError: f"{hub_id} is no folder here, and the hub has no model {hub_id}, or "
            "it is private: check the spelling, and set HF_TOKEN for a private one.",
            hub_errors.RevisionNotFoundError: f"{hub_id} has no revision {revision!r}; leave it out for the default "
            "one.",
            hub_errors.LocalEntryNotFoundError: f"{hub_id} is no folder here, is not (completely) in the cache, and "
            "the hub was not reached: unset HF_HUB_OFFLINE or check the network, set HF_ENDPOINT to a mirror, or give "
            "a local folder.",
            Exception: f"Downloading {hub_id} failed ({_reason(error)}): check network and disk space, then run the "
            "same again; files that are complete are kept.",
        }
        raise DownloadError(next(text for kind, text in known.items() if isinstance(error, kind))) from error


def _fetch_from_modelscope(hub_id: str, revision: str | None, **options: Any) -> str:
    try:
        modelscope = importlib.import_module("modelscope")
    except ImportError as error:
        text = "Downloading from ModelScope needs its package: pip install modelscope (or tilewise[modelscope])."
        raise DownloadError(text) from error
    try:
        return modelscope.snapshot_download(hub_id, revision=revision, **options)
    except Exception as error:  # as above
        raise DownloadError(
            f"Downloading {hub_id} from ModelScope failed ({_reason(error)}): check the id, the revision and the "
            "network, then run the same again."
        ) from error
