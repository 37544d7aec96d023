"""Greedy answers to many held-out questions at once, with the dense forward pass: the quick look inside training."""

import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from training.batches import Encoder, cut_tiles
from training.network import Network
from training.scenes import EVALUATED, LANGUAGES, create_question
from training.scenes.sample import Turn
from training.scores import Score, tally

from tilewise.kernels import normalize_tiles

MAX_NEW_TOKENS = 64
_MAX_TILES, _MAX_ROWS = 128, 64


class QuestionDataset(Dataset):
    """Held-out questions, tasks and languages in turn: (turn, prompt ids, tiles)."""

    def __init__(self, encoder: Encoder, per_task: int, tile_size: int) -> None:
        """`per_task` questions a task, half in each language."""
        self.encoder, self.tile_size = encoder, tile_size
        tasks = list(EVALUATED)
        self.keys = [(t, LANGUAGES[number % 2], number // 2) for number in range(per_task) for t in tasks]

    def __len__(self) -> int:
        """Questions of all tasks."""
        return len(self.keys)

    def __getitem__(self, number: int) -> tuple[Turn, list[int], Tensor]:
        """Draw the scene and encode the question."""
        sample = create_question(*self.keys[number])
        cut = [cut_tiles(picture, self.tile_size) for picture in sample.pictures]
        ids, _ = self.encoder.prompt(sample.turns[0].question, [len(tiles) for tiles in cut])
        pixels = torch.from_numpy(np.concatenate(cut)) if cut else torch.zeros(0, dtype=torch.uint8)
        return sample.turns[0], ids, pixels


Question = tuple[Turn, list[int], Tensor]


def _group(questions: Iterator[Question]) -> Iterator[list[Question]]:
    """Questions with the same number of tiles together."""
    waiting: dict[int, list[Question]] = defaultdict(list)
    for question in questions:
        count = len(question[2])
        group = waiting[count]
        group.append(question)
        if (len(group) + 1) * count > _MAX_TILES or len(group) == _MAX_ROWS:
            yield waiting.pop(count)
    yield from (group for group in waiting.values() if group)


@torch.no_grad()
def generate(network: Network, prompts: list[list[int]], pixels: Tensor | None, encoder: Encoder) -> list[list[int]]:
    """The answers' ids, stop token included where one came. Pixels (N, 3, S, S) of all prompts, in order."""
    device = next(network.model.parameters()).device
    lengths = torch.tensor([len(ids) for ids in prompts], device=device)
    longest = max(map(len, prompts)) + MAX_NEW_TOKENS
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ids = ids.to(device)
    slots = (ids.flatten() == encoder.context_id).nonzero()[:, 0]
    rows = torch.arange(len(prompts), device=device)
    embedding = network.model.decoder.embedding
    x = network.embed(ids, slots, None if pixels is None else network.encode_tiles(pixels))
    is_done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    new: list[Tensor] = []
    for step in range(MAX_NEW_TOKENS):
        # Keys behind a row's end are hidden from it by causality alone.
        end = min(longest, -(-(longest - MAX_NEW_TOKENS + step) // 16) * 16)
        positions = torch.arange(end, device=device).expand(len(prompts), -1)
        hidden = network.decode(x[:, :end], positions)
        token = network.model.decoder.logits(hidden[rows, lengths + step - 1]).argmax(-1)
        new.append(token)
        is_done |= token == encoder.stop_id
        if bool(is_done.all()):
            break
        x[rows, lengths + step] = embedding(token).to(x.dtype)
    return torch.stack(new, dim=1).tolist()


def evaluate(network: Network, encoder: Encoder, *, per_task: int, num_workers: int, seconds: float) -> list[Score]:
    """Score every task on `per_task` held-out questions, or as many as `seconds` allow."""
    model = network.model
    device = next(model.parameters()).device
    dataset = QuestionDataset(encoder, per_task, model.config.vision.image_size)
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers, prefetch_factor=8 if num_workers else None)
    deadline = time.monotonic() + seconds
    results: list[tuple[Turn, str]] = []
    for group in _group(iter(loader)):
        turns, prompts, tiles = zip(*group, strict=True)
        pixels = torch.cat(tiles).to(device) if tiles[0].numel() else None
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            normal = None if pixels is None else normalize_tiles(pixels, torch.float32)
            answers = generate(network, list(prompts), normal, encoder)
        for turn, ids in zip(turns, answers, strict=True):
            ids = ids[: ids.index(encoder.stop_id)] if encoder.stop_id in ids else ids
            results.append((turn, encoder.tokenizer.decode(ids, skip_special_tokens=False)))
        if time.monotonic() > deadline:
            break
    return tally(results)
