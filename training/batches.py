"""Samples as tensors. Batch number i is a function of the seed and i alone, so training resumes anywhere.

The turns of one picture either follow each other, as in a conversation, or stand side by side: then each sees the
picture and itself, at the positions it would have as the only question, and none can copy from another's answer.

    | system, picture | turn 1 | turn 2 | …      group 0 is seen by all, the others by themselves
           0              1        2
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, get_worker_info
from training.scenes import create_sample
from training.scenes.sample import Chance, Picture, Sample

from tilewise.inputs.conversation import ImagePart, Message
from tilewise.inputs.media.tiling import choose_grid, has_thumbnail
from tilewise.inputs.request_builder import IMAGE_CONTEXT
from tilewise.inputs.text.layout import ImageSlot, Special, render
from tilewise.inputs.text.profiles import PROFILES, PromptProfile
from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.types import TilingParameters

# How often a batch has pictures of so many tiles.
MIXTURES: dict[str, dict[int, float]] = {
    "start": {0: 0.01, 1: 0.84, 2: 0.08, 3: 0.04, 5: 0.03},
    "full": {
        0: 0.01,
        1: 0.34,
        2: 0.18,
        3: 0.05,
        4: 0.01,
        5: 0.04,
        6: 0.02,
        7: 0.18,
        9: 0.07,
        10: 0.02,
        13: 0.07,
        14: 0.01,
    },
}
# What is learnt last is asked for more often, what is known by then less.
EMPHASIS = {
    "texts": 1.3, "small": 2.0, "chart": 0.5, "table": 0.8,
    "count": 3.5, "box": 2.0, "relation": 1.5, "colour": 1.2, "describe": 0.8, "latin": 1.6, "lines": 1.3,
    "shape": 0.5, "size": 0.4, "absent": 0.5, "background": 0.4,
}  # fmt: skip
_MARKS = re.compile("(" + "|".join(("<ref>", "</ref>", "<box>", "</box>")) + ")")
_PROFILE, _OTHER_PROFILE = PROFILES["internvl-internlm2"], PROFILES["internvl-official"]
_NUM_TALKS = 64
_LENGTH_STEP = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One sample's ids with the group and position of each; `labels` holds the next id where it is to be learnt."""

    ids: list[int]
    positions: list[int]
    groups: list[int]
    labels: list[int]


def cut_tiles(picture: Picture, tile_size: int) -> np.ndarray:
    """The tiles that the engine cuts, (N, S, S, 3) uint8; of a picture that is scaled, within two levels of them."""
    tiling = TilingParameters(max_tiles=picture.max_tiles, tile_size=tile_size)
    columns, rows = choose_grid(picture.image.width, picture.image.height, tiling)
    pixels = np.asarray(picture.image)
    canvas = _scale(pixels, columns * tile_size, rows * tile_size)
    tiles = canvas.reshape(rows, tile_size, columns, tile_size, 3).swapaxes(1, 2).reshape(-1, tile_size, tile_size, 3)
    if not has_thumbnail(columns, rows, tiling):
        return tiles
    return np.concatenate((tiles, _scale(pixels, tile_size, tile_size)[None]))


def _scale(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H, W, 3) -> (height, width, 3), bicubic; four times as fast as by Pillow, which is what drawing waits for."""
    if pixels.shape[:2] == (height, width):
        return pixels
    channels = torch.tensor(pixels).permute(2, 0, 1)[None]
    scaled = F.interpolate(channels, size=(height, width), mode="bicubic", antialias=True)
    return scaled[0].permute(1, 2, 0).numpy()


class Encoder:
    """Turns samples into ids as the engine's `RequestBuilder` does, and appends the answers."""

    def __init__(self, tokenizer: Tokenizer, tokens_per_tile: int) -> None:
        """Look up the special tokens."""
        self.tokenizer = tokenizer
        self.tokens_per_tile = tokens_per_tile
        self.context_id = tokenizer.special_id(IMAGE_CONTEXT)
        self.stop_id = tokenizer.special_id("<|im_end|>")
        self._encode = lru_cache(maxsize=65536)(tokenizer.encode)

    def prompt(self, question: str, tiles: Sequence[int], profile: PromptProfile = _PROFILE) -> tuple[list[int], int]:
        """Ids of a first question about pictures of so many tiles each, and how many of them come before it."""
        parts = (*(ImagePart("") for _ in tiles), question)
        ids, start = [self.tokenizer.special_id("<s>")], 1
        for segment in render(profile, (Message("user", parts),), self.tokenizer.special_tokens):
            if isinstance(segment, ImageSlot):
                ids += [self.context_id] * (tiles[segment.number] * self.tokens_per_tile)
                start = len(ids) + 1  # </img> is the last of them
            else:
                special = isinstance(segment, Special)
                ids += [self.tokenizer.special_id(segment.name)] if special else self._encode(segment)
        return ids, start

    def answer(self, text: str) -> list[int]:
        """Ids of an answer, marks of regions as special tokens, ending with the stop token."""
        ids: list[int] = []
        for number, piece in enumerate(_MARKS.split(text)):
            ids += [self.tokenizer.special_id(piece)] if number % 2 else self._encode(piece)
        return [*ids, self.stop_id]

    def sequence(self, sample: Sample, tiles: Sequence[int], chance: Chance) -> Row:
        """One sample with all of its turns."""
        profile = _OTHER_PROFILE if chance.is_true(0.1) else _PROFILE
        is_chain = not tiles or chance.is_true(0.25)
        ids: list[int] = []
        positions: list[int] = []
        groups: list[int] = []
        labels: list[int] = []
        for number, turn in enumerate(sample.turns):
            prompt, start = self.prompt(turn.question, tiles, profile)
            if number:
                # What stands between two turns is what stands before the first, but for the system's and the pictures.
                prompt = self._follow_up(turn.question, profile) if is_chain else prompt[start:]
            answer = self.answer(turn.answer)
            first = 0 if not ids else (len(ids) if is_chain else start)
            new = [*prompt, *answer]
            ids += new
            positions += range(first, first + len(new))
            shared = len(new) if is_chain else (start if number == 0 else 0)
            groups += [0] * shared + [number + 1] * (len(new) - shared)
            labels += [-100] * (len(prompt) - 1) + answer + [-100]
        return Row(ids, positions, groups, labels)

    def _follow_up(self, question: str, profile: PromptProfile) -> list[int]:
        """From behind an answer's stop token to the next answer."""
        ids: list[int] = []
        turns = (Message("user", ("",)), Message("assistant", ("",)), Message("user", (question,)))
        segments = render(profile, turns, self.tokenizer.special_tokens)
        # The last two openings of turns, after the line break that may follow the stop token.
        special = [i for i, segment in enumerate(segments) if isinstance(segment, Special)]
        for segment in segments[special[-4] + 1 :]:
            is_special = isinstance(segment, Special)
            ids += [self.tokenizer.special_id(segment.name)] if is_special else self._encode(segment)
        return ids


class BatchDataset(Dataset):
    """Training batches by number."""

    def __init__(self, encoder: Encoder, mixtures: tuple[int, str], num_tiles: int, seed: int, tile_size: int) -> None:
        """Batches of at most `num_tiles` tiles, all of one count a sample.

        `mixtures`: how many batches have the mixture `start`, and the mixture of those behind them.
        """
        self.encoder, self.num_tiles = encoder, num_tiles
        self.num_start, self.mixture = mixtures
        self.seed, self.tile_size = seed, tile_size

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Batch `number`; see `collate`."""
        chance = Chance(f"batch/{self.seed}/{number}")
        mixture = MIXTURES["start" if number < self.num_start else self.mixture]
        count = chance.weighted({count: weight for count, weight in mixture.items() if count <= self.num_tiles})
        num_samples = self.num_tiles // count if count else _NUM_TALKS
        tiles: list[np.ndarray] = []  # a picture's each
        sequences: list[Row] = []
        for row in range(num_samples):
            sample = create_sample(f"{self.seed}/{number}/{row}", count, emphasis=EMPHASIS)
            cut = [cut_tiles(picture, self.tile_size) for picture in sample.pictures]
            tiles += cut
            sequences.append(self.encoder.sequence(sample, [len(each) for each in cut], chance))
        return collate(sequences, tiles, self.num_tiles, self.encoder.context_id)


def collate(sequences: Sequence[Row], tiles: Sequence[np.ndarray], num_tiles: int, context_id: int) -> dict:
    """Pad to one length and to one number of tiles.

    Shapes: ids, positions, groups: (B, T) int64 · tiles: (num_tiles, S, S, 3) uint8, or (0,) without pictures ·
        slots: (I,), targets: (L,) flat indices into (B, T) · labels: (L,) int64
    """
    length = -(-max(len(sequence.ids) for sequence in sequences) // _LENGTH_STEP) * _LENGTH_STEP
    shape = (len(sequences), length)
    ids, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    groups, labels = torch.full(shape, -1), torch.full(shape, -100)
    for row, sequence in enumerate(sequences):
        for target, values in zip((ids, positions, groups, labels), _fields(sequence), strict=True):
            target[row, : len(values)] = torch.tensor(values)
    slots, targets = (ids.flatten() == context_id).nonzero()[:, 0], (labels.flatten() >= 0).nonzero()[:, 0]
    pixels = torch.zeros(0, dtype=torch.uint8)
    if tiles:
        size = tiles[0].shape[1]
        pixels = _create_pixels(num_tiles * size * size * 3).view(num_tiles, size, size, 3)
        parts = pixels.split([*map(len, tiles), num_tiles - sum(map(len, tiles))])
        for part, cut in zip(parts, tiles, strict=False):
            np.copyto(part.numpy(), cut)
        parts[-1].zero_()
    return {
        "ids": ids,
        "positions": positions,
        "groups": groups,
        "slots": slots,
        "targets": targets,
        "labels": labels.flatten()[targets],
        "tiles": pixels,
    }


def _create_pixels(number: int) -> Tensor:
    """Memory for tiles, where the process that trains finds it without another copy."""
    if get_worker_info() is None:
        return torch.empty(number, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(number)
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (number,))


def _fields(sequence: Row) -> tuple[list[int], ...]:
    return sequence.ids, sequence.positions, sequence.groups, sequence.labels


def build_mask(groups: Tensor) -> Tensor:
    """(B, T) groups -> (B, 1, T, T), true where a position sees another: its own group and group 0, up to itself."""
    causal = torch.ones(groups.shape[1], groups.shape[1], dtype=torch.bool, device=groups.device).tril()
    seen = (groups[:, None, :] == 0) | (groups[:, None, :] == groups[:, :, None])
    return (seen & causal)[:, None]
