"""Reads byte-level BPE from `tokenizer.json`, or from `vocab.json` and `merges.txt`.

What a file holds beside vocabulary and merges is honoured here, or refused by name; what it says of truncation and
padding is for batches of training, and left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from tilewise.errors import CheckpointError
from tilewise.files import read_model_file
from tilewise.inputs.text.byte_level_pieces import REMEDY, ByteLevelPieces, BytePairs, Merge, Split
from tilewise.inputs.text.tokenizer_config import MAX_FILE_BYTES, AddedToken, TokenizerConfig, check_is_plain

_QWEN_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
# Source: transformers, models/qwen2/tokenization_qwen2.py.
_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Without `Removed`, which drops text.
_BEHAVIORS = {
    "Isolated": "isolated",
    "Contiguous": "contiguous",
    "MergedWithPrevious": "merged_with_previous",
    "MergedWithNext": "merged_with_next",
}


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False


class _Kind(msgspec.Struct):
    type: str = "BPE"


class _Model(msgspec.Struct):
    vocab: dict[str, int]
    merges: list[Merge]
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    ignore_merges: bool = False


class _Name(msgspec.Struct):
    id: str


class _TemplatePart(msgspec.Struct):
    special: _Name | None = msgspec.field(name="SpecialToken", default=None)
    sequence: _Name | None = msgspec.field(name="Sequence", default=None)


class _TemplateToken(msgspec.Struct):
    ids: list[int]


class _Step(msgspec.Struct):
    """A normaliser, a pre-tokenizer, a decoder or a post-processor: what those that are honoured say, and sequences."""

    type: str
    # msgspec copies the defaults
    normalizers: list["_Step"] = []
    pretokenizers: list["_Step"] = []
    decoders: list["_Step"] = []
    processors: list["_Step"] = []
    add_prefix_space: bool = False
    use_regex: bool = True
    pattern: dict[str, str] = {}
    behavior: str = ""
    invert: bool = False
    single: list[_TemplatePart] = []
    special_tokens: dict[str, _TemplateToken] = {}


class _File(msgspec.Struct):
    model: msgspec.Raw
    added_tokens: list[_Added] = []
    normalizer: _Step | None = None
    pre_tokenizer: _Step | None = None
    decoder: _Step | None = None
    post_processor: _Step | None = None


def load_json(folder: Path, config: TokenizerConfig) -> ByteLevelPieces:
    """Read `tokenizer.json`; added tokens of `tokenizer_config.json` that it lacks are added.

    Raises:
        CheckpointError: it is missing or malformed, or holds what cannot be honoured; the message names it.
    """
    file = _read(folder / "tokenizer.json", _File)
    kind = _parse(file.model, _Kind, "model of tokenizer.json").type
    if kind != "BPE":
        raise _refuse("model", kind)
    model = _parse(file.model, _Model, "model of tokenizer.json")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if getattr(model, name):
            raise _refuse(f"model.{name}", getattr(model, name))
    splits, use_gpt2_pattern = _read_patterns(file.pre_tokenizer)
    _check_decoder(file.decoder)
    pairs = BytePairs(
        source="tokenizer.json",
        vocab=model.vocab,
        merges=model.merges,
        splits=splits,
        use_gpt2_pattern=use_gpt2_pattern,
        use_nfc=_read_nfc(file.normalizer),
        ignore_merges=model.ignore_merges,
    )
    for token in file.added_tokens:
        check_is_plain(token.content, token.lstrip, token.rstrip)
    own = [AddedToken(token.content, token.id, token.special) for token in file.added_tokens]
    return ByteLevelPieces(pairs, _join(own, config.added), config, _read_bos(file.post_processor))


def load_vocab_and_merges(folder: Path, config: TokenizerConfig) -> ByteLevelPieces:
    """Read `vocab.json` and `merges.txt`, which do not say how text is cut: it must be Qwen2's way.

    Raises:
        CheckpointError: a file is missing or malformed, or is of another tokenizer than Qwen2's.
    """
    if config.tokenizer_class not in _QWEN_CLASSES:
        raise CheckpointError(
            f"vocab.json and merges.txt are read for Qwen2Tokenizer only; tokenizer_config.json says tokenizer_class "
            f"{config.tokenizer_class!r:.80}. Put the checkpoint's tokenizer.json beside them."
        )
    vocab = _read(folder / "vocab.json", dict[str, int])
    try:
        lines = read_model_file(folder / "merges.txt", MAX_FILE_BYTES).decode().split("\n")
    except UnicodeDecodeError:
        raise CheckpointError("merges.txt is not UTF-8; download it again.") from None
    merges = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    pairs = BytePairs("vocab.json", vocab, merges, [Split(_QWEN_PATTERN)])
    return ByteLevelPieces(pairs, config.added, config)


_T = TypeVar("_T")


def _read(path: Path, kind: type[_T]) -> _T:
    return _parse(read_model_file(path, MAX_FILE_BYTES), kind, path.name)


def _parse(content: bytes | msgspec.Raw, kind: type[_T], name: str) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{name} is malformed: {error!s:.200}. Download it again.") from None


def _refuse(name: str, value: object) -> CheckpointError:
    return CheckpointError(f"tokenizer.json has {name} {value!r:.80}, which is not supported. {REMEDY}")


def _steps(part: _Step | None) -> list[_Step]:
    """The steps of a part of the file, be it none, one, or a sequence, which may hold sequences."""
    waiting, steps = [part] if part is not None else [], list[_Step]()
    while waiting:
        step = waiting.pop()
        if step.type == "Sequence":
            waiting += reversed([*step.normalizers, *step.pretokenizers, *step.decoders, *step.processors])
        else:
            steps.append(step)
    return steps


def _read_nfc(normalizer: _Step | None) -> bool:
    steps = _steps(normalizer)
    for step in steps:
        if step.type != "NFC":
            raise _refuse("normalizer", step.type)
    return bool(steps)


def _read_patterns(pre_tokenizer: _Step | None) -> tuple[list[Split], bool]:
    """The patterns that cut text, in their order, and whether GPT-2's own follows them."""
    steps = _steps(pre_tokenizer)
    if not steps or steps[-1].type != "ByteLevel":
        raise _refuse("pre_tokenizer", steps[-1].type if steps else None)
    last = steps.pop()
    if last.add_prefix_space:
        raise _refuse("pre_tokenizer.add_prefix_space", True)
    return [_read_split(step) for step in steps], last.use_regex


def _read_split(step: _Step) -> Split:
    if step.type != "Split":
        raise _refuse("pre_tokenizer", step.type)
    if step.behavior not in _BEHAVIORS:
        raise _refuse("pre_tokenizer.behavior", step.behavior)
    kinds = list(step.pattern)
    if kinds not in (["Regex"], ["String"]):
        raise _refuse("pre_tokenizer.pattern", step.pattern)
    kind = kinds[0]
    return Split(step.pattern[kind], kind == "Regex", _BEHAVIORS[step.behavior], step.invert)


def _check_decoder(decoder: _Step | None) -> None:
    """Our own table turns tokens into bytes; the file must mean the same."""
    for step in _steps(decoder):
        if step.type != "ByteLevel":
            raise _refuse("decoder", step.type)


def _read_bos(post_processor: _Step | None) -> int | None:
    """The token that the file puts before every text, if there is one; anything else that it adds is refused."""
    templates = [step for step in _steps(post_processor) if step.type != "ByteLevel"]  # that one changes offsets only
    if not templates:
        return None
    template = templates[0]
    if len(templates) > 1 or template.type != "TemplateProcessing":
        raise _refuse("post_processor", templates[-1].type)
    names = [part.special.id for part in template.single if part.special is not None]
    ends_in_text = bool(template.single) and template.single[-1].sequence is not None
    if not ends_in_text or len(template.single) != len(names) + 1 or len(names) > 1:
        raise _refuse("post_processor.single", [*names, "and text"])
    if not names:
        return None
    token = template.special_tokens.get(names[0])
    if token is None or len(token.ids) != 1:
        raise _refuse("post_processor.special_tokens", names[0])
    return token.ids[0]


def _join(own: list[AddedToken], more: Sequence[AddedToken]) -> list[AddedToken]:
    """The file's added tokens and those of tokenizer_config.json, which may not contradict each other."""
    by_name, by_id = {token.name: token for token in own}, {token.token_id: token for token in own}
    if len(by_name) != len(own) or len(by_id) != len(own):
        raise CheckpointError("added_tokens of tokenizer.json must have distinct names and ids; download it again.")
    joined = list(own)
    for token in more:
        if token.name not in by_name and token.token_id not in by_id:
            joined.append(token)
        elif by_name.get(token.name, token).token_id != token.token_id or token.name not in by_name:
            raise CheckpointError(
                f"tokenizer.json and tokenizer_config.json disagree about the added token {token.name!r:.80} "
                f"({token.token_id}); take both from the model's own repository."
            )
    return joined
