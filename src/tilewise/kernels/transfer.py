"""Copies between host and device that wait for nothing: a plain one would drain the stream first."""

import numpy as np
import torch
from torch import Tensor


def fill(target: Tensor, array: np.ndarray) -> None:
    """Copy an array into a tensor in stream order; the array may change as soon as this returns."""
    source = torch.from_numpy(array)
    # Pinned blocks are kept until the copy is over.
    target.copy_(source.pin_memory() if target.is_cuda else source, non_blocking=True)


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on the device, as `fill` copies it."""
    tensor = torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device=device)
    fill(tensor, array)
    return tensor


def download(tensor: Tensor) -> Tensor:
    """Copy a tensor to the host in stream order; its values are there once the stream has come so far."""
    if tensor.device.type != "cuda":
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
