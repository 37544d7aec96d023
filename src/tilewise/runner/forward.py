"""What a step computes, from its batch to the logits; captured and uncaptured steps run the same function."""

import torch
from torch import Tensor

from tilewise.cache.tensors import CacheTensors
from tilewise.model.internvl import InternVL
from tilewise.runner.batch import StepBatch


def compute_logits(model: InternVL, caches: CacheTensors, batch: StepBatch, latest: Tensor) -> Tensor:
    """Run the decoder over the step's tokens: the logits behind `batch.last`, (B, V) fp32.

    `latest` (rows,) int64 holds the last step's samples, which tokens with a source are.
    """
    decoder = model.decoder
    token_ids = torch.where(batch.sources < 0, batch.token_ids, latest[batch.sources.clamp(min=0)])
    x = decoder.embedding(token_ids)
    if batch.has_decodes_only:  # no pictures, and a sample behind every token
        return decoder.logits(decoder(x, caches.k, caches.v, batch.attention))
    pool = caches.tiles.flatten(0, 1)
    x = torch.where(batch.image_rows[:, None] < 0, x, pool[batch.image_rows.clamp(min=0)])
    return decoder.logits(decoder(x, caches.k, caches.v, batch.attention, batch.last))
