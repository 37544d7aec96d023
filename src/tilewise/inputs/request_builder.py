"""A conversation to a `Request`: pictures loaded and placed as spans, text encoded, limits checked.

The one place where pictures and text meet. What is far too long is refused before anything is tokenised,
fetched or decoded. Slots are placed by structure: no text adds or removes one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from tilewise.config import ChatTemplateConfig, ModelConfig
from tilewise.errors import CheckpointError, InputError, PromptTooLongError
from tilewise.inputs.conversation import ImagePart, Message
from tilewise.inputs.media.fetch_context import check_wanted
from tilewise.inputs.media.policy import ImagePolicy
from tilewise.inputs.media.sources import ImageSource, prepare_image
from tilewise.inputs.text.detokenizer import Detokenizer
from tilewise.inputs.text.grammar import check_format
from tilewise.inputs.text.layout import ImageSlot, Segment, Special, render
from tilewise.inputs.text.profile_choice import check_profile, choose_profile, fit_profile
from tilewise.inputs.text.profiles import PromptProfile
from tilewise.inputs.text.tokenizer import Tokenizer, load_tokenizer
from tilewise.inputs.text.tool_syntax import internlm2
from tilewise.types import GenerationConfig, ImageSpan, PreparedImage, Request, TilingParameters

IMAGE_CONTEXT = "<IMG_CONTEXT>"

PrepareImage = Callable[[ImageSource, TilingParameters, ImagePolicy], PreparedImage]


@dataclass(frozen=True, slots=True)
class RequestBuilder:
    """Builds the requests of one engine; safe to share between threads. `build` fetches and decodes, so may wait.

    `prepare` loads one picture.

    Raises:
        CheckpointError: the tokenizer has ids that the model does not, or lacks special tokens that the prompt needs.
    """

    model: ModelConfig
    session_len: int
    tokenizer: Tokenizer
    profile: PromptProfile
    policy: ImagePolicy
    tiling: TilingParameters
    prepare: PrepareImage = prepare_image

    def __post_init__(self) -> None:
        """Check that the parts fit, and leave out what the profile has no special tokens for."""
        known, used = self.model.decoder.vocab_size, self.tokenizer.vocab_size
        if used > known:
            raise CheckpointError(f"The tokenizer has {used} tokens, the model only {known}: they do not fit.")
        self.tokenizer.special_id(IMAGE_CONTEXT)
        check_profile(self.profile, self.tokenizer.special_tokens)
        object.__setattr__(self, "profile", fit_profile(self.profile, self.tokenizer.special_tokens))

    def build(
        self, messages: Sequence[Message], generation: GenerationConfig, request_id: str, namespace: str = ""
    ) -> Request:
        """Lay out, tokenise, load and place.

        `max_new_tokens` may exceed the room that the prompt leaves: the answer then ends with `length` where the
        session is full.

        Raises:
            PromptTooLongError: the prompt leaves no room for one token of answer.
            InputError: a picture or a field of `generation` is refused.
        """
        segments = render(self.profile, messages, self.tokenizer.special_tokens)
        parts = [part for message in messages for part in message.images]
        self.policy.limits.check_request(len(parts))
        self._check_at_least(segments)
        stop_token_ids = self._resolve_stops(generation)
        generation = self._resolve_bad_words(generation, stop_token_ids)
        check_format(generation)
        encoded = self._encode_all(segments, len(parts))
        num_text = len(self._bos_ids) + sum(map(len, encoded))
        self._check_length(num_text + len(parts) * self.model.tokens_per_tile, len(parts), "at least ")
        images = self._load(parts)
        num_tiles = sum(image.num_tiles for image in images)
        self._check_length(num_text + num_tiles * self.model.tokens_per_tile, num_tiles)
        token_ids, spans = self._place(segments, encoded, images)
        return Request(request_id, token_ids, spans, images, generation, stop_token_ids, namespace)

    def create_detokenizer(self, generation: GenerationConfig) -> Detokenizer:
        """A detokenizer that watches for the caller's and the profile's stop words that are no special tokens."""
        profile_words = () if generation.ignore_eos else self.profile.stop_words
        words = [word for word in (*generation.stop_words, *profile_words) if self._find_special(word) is None]
        return Detokenizer(self.tokenizer, skip_special_tokens=generation.skip_special_tokens, stop_words=words)

    def find_call_id(self, generation: GenerationConfig) -> int | None:
        """The special token that opens a call of a tool, where the answer may hold one."""
        return internlm2.find_call_id(generation, self.tokenizer)

    @property
    def _bos_ids(self) -> tuple[int, ...]:
        """What every prompt begins with: one token, or none."""
        return () if self.tokenizer.bos_id is None else (self.tokenizer.bos_id,)

    def _find_special(self, word: str) -> int | None:
        """The special token that a stop word names; one that is shown in any case is watched for in the text."""
        token_id = self.tokenizer.special_tokens.get(word)
        return token_id if token_id in self.tokenizer.special_ids else None

    def _encode_all(self, segments: Sequence[Segment], num_images: int) -> list[list[int]]:
        """The ids of each segment, refused before they are many more than fit; a picture takes one tile at least."""
        encoded = list[list[int]]()
        num_tokens = len(self._bos_ids) + num_images * self.model.tokens_per_tile
        for segment in segments:
            if isinstance(segment, str) and self.tokenizer.is_far_longer(segment, self.session_len):
                self._check_length(num_tokens + self.session_len, num_images, "at least ")
            encoded.append(self._encode(segment))
            num_tokens += len(encoded[-1])
            if num_tokens > 2 * self.session_len:
                self._check_length(num_tokens, num_images, "at least ")
        return encoded

    def _encode(self, segment: Segment) -> list[int]:
        if isinstance(segment, str):
            return self.tokenizer.encode(segment)
        return [self.tokenizer.special_id(segment.name)] if isinstance(segment, Special) else []

    def _place(
        self, segments: Sequence[Segment], encoded: Sequence[list[int]], images: Sequence[PreparedImage]
    ) -> tuple[tuple[int, ...], tuple[ImageSpan, ...]]:
        context_id = self.tokenizer.special_id(IMAGE_CONTEXT)
        token_ids, spans = list(self._bos_ids), list[ImageSpan]()
        for segment, ids in zip(segments, encoded, strict=True):
            token_ids += ids
            if isinstance(segment, ImageSlot):
                start = len(token_ids)
                token_ids += [context_id] * (images[segment.number].num_tiles * self.model.tokens_per_tile)
                spans.append(ImageSpan(start, len(token_ids), segment.number))
        return tuple(token_ids), tuple(spans)

    def _load(self, parts: Sequence[ImagePart]) -> tuple[PreparedImage, ...]:
        """Load and prepare the pictures one by one, while together they stay within the request's pixels."""
        images, num_pixels = list[PreparedImage](), 0
        for number, part in enumerate(parts, start=1):
            check_wanted()
            try:
                image = self.prepare(part.source, self._choose_tiling(part), self.policy)
                num_pixels += image.width * image.height
                self.policy.limits.check_request(number, num_pixels)
            except InputError as error:
                place = f"Picture {number} of {len(parts)}: " if len(parts) > 1 else ""
                raise type(error)(f"{place}{error}", param=error.param) from None
            images.append(image)
        return tuple(images)

    def _choose_tiling(self, part: ImagePart) -> TilingParameters:
        by_detail = {"low": 1, "high": self.model.max_dynamic_patch, "auto": self.tiling.max_tiles}
        max_tiles = by_detail[part.detail] if part.max_dynamic_patch is None else part.max_dynamic_patch
        min_tiles = part.min_dynamic_patch
        if min_tiles is None:
            # A caller who lowers only the most must not meet a default least above it.
            min_tiles = self.tiling.min_tiles if part.detail == "auto" and part.max_dynamic_patch is None else 1
        return replace(self.tiling, min_tiles=min_tiles, max_tiles=max_tiles)

    def _resolve_stops(self, generation: GenerationConfig) -> tuple[int, ...]:
        """The caller's ids and special stop words, and the profile's unless the caller ignores them."""
        self._check_ids("stop_token_ids", generation.stop_token_ids)
        stops = [self._find_special(word) for word in generation.stop_words]
        if not generation.ignore_eos:
            stops += [self.tokenizer.special_tokens.get(word) for word in self.profile.stop_words]
        named = [token_id for token_id in stops if token_id is not None]
        if not named and generation.response_format is not None:
            named = [self.tokenizer.eos_id]  # a complete form has to end at some token
        return tuple(dict.fromkeys((*generation.stop_token_ids, *named)))

    def _resolve_bad_words(self, generation: GenerationConfig, stop_token_ids: tuple[int, ...]) -> GenerationConfig:
        self._check_ids("bad_token_ids", generation.bad_token_ids)
        self._check_ids("logit_bias", [token_id for token_id, _ in generation.logit_bias])
        bad_token_ids = list(generation.bad_token_ids)
        for word in generation.bad_words:
            is_special = word in self.tokenizer.special_tokens
            ids = [self.tokenizer.special_id(word)] if is_special else self.tokenizer.encode(word)
            if len(ids) != 1:
                raise InputError(
                    f"bad_words holds {word!r:.80}, which is {len(ids)} tokens; only words of one token can be banned.",
                    param="bad_words",
                )
            bad_token_ids += ids
        banned = tuple(dict.fromkeys(bad_token_ids))
        stops = stop_token_ids if generation.min_new_tokens else ()
        if len({*banned, *stops}) >= self.tokenizer.vocab_size:
            text = "bad_words, bad_token_ids and min_new_tokens together ban every token; leave some for the answer."
            raise InputError(text, param="bad_token_ids")
        return generation if banned == generation.bad_token_ids else replace(generation, bad_token_ids=banned)

    def _check_ids(self, name: str, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if token_id >= self.tokenizer.vocab_size:
                text = f"{name} holds {token_id}; the model's ids end at {self.tokenizer.vocab_size - 1}."
                raise InputError(text, param=name)

    def _check_at_least(self, segments: Sequence[Segment]) -> None:
        num_tiles = sum(isinstance(segment, ImageSlot) for segment in segments)
        num_text = sum(self.tokenizer.count_at_least(segment) for segment in segments if isinstance(segment, str))
        self._check_length(num_text + num_tiles * self.model.tokens_per_tile, num_tiles, "at least ")

    def _check_length(self, num_tokens: int, num_tiles: int, quantity: str = "") -> None:
        if num_tokens < self.session_len:
            return
        per_tile = self.model.tokens_per_tile
        num_text = num_tokens - num_tiles * per_tile
        fewer_tiles = "lower max_dynamic_patch (--max-dynamic-patch), " if num_tiles else ""
        raise PromptTooLongError(
            f"The prompt takes {quantity}{num_tokens} tokens ({num_text} of text, {num_tiles} tiles of {per_tile}), "
            f"and the session of {self.session_len} must hold it and at least one token of answer. Raise session_len "
            f"(--session-len), {fewer_tiles}or shorten the conversation.",
            param="messages",
        )


def create_builder(
    folder: Path,
    model: ModelConfig,
    chat_template: ChatTemplateConfig | None = None,
    *,
    max_dynamic_patch: int | None = None,
    min_dynamic_patch: int | None = None,
    allowed_media_hosts: Sequence[str] = (),
) -> RequestBuilder:
    """Load what turns prompts into requests, before any weight is read; the options are `pipeline`'s.

    Raises:
        ConfigError: a setting is not available.
        InputError: no picture can have that many tiles.
        CheckpointError: the tokenizer is missing or does not fit the model.
    """
    tiling = TilingParameters(
        max_tiles=model.max_dynamic_patch if max_dynamic_patch is None else max_dynamic_patch,
        use_thumbnail=model.use_thumbnail,
        tile_size=model.vision.image_size,
    )
    if min_dynamic_patch is None:  # a caller who lowers only the most must not meet the checkpoint's least above it
        min_dynamic_patch = min(model.min_dynamic_patch, tiling.max_tiles)
    tokenizer = load_tokenizer(folder, model.decoder.vocab_size)
    profile = choose_profile(model, chat_template)
    policy = ImagePolicy(allowed_media_hosts=cast(tuple[str, ...], allowed_media_hosts))
    tiling = replace(tiling, min_tiles=min_dynamic_patch)
    return RequestBuilder(model, model.decoder.max_position_embeddings, tokenizer, profile, policy, tiling)
