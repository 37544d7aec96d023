"""Copies between host and device that wait for nothing: a plain one would drain the stream first."""

import numpy as np
import torch
from torch import Tensor

_DTYPES = {name: getattr(torch, name) for name in ("uint8", "int32", "int64", "float32", "float64")}


def fill(target: Tensor, array: np.ndarray) -> None:
    """Copy an array into a tensor in stream order; the array may change as soon as this returns."""
    # Pinned blocks are kept until the copy is over.
    host = torch.empty(array.shape, dtype=target.dtype, pin_memory=target.is_cuda)
    np.copyto(host.numpy(), array, casting="no")
    target.copy_(host, non_blocking=True)


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on the device, as `fill` copies it."""
    tensor = torch.empty(array.shape, dtype=_DTYPES[array.dtype.name], device=device)
    fill(tensor, array)
    return tensor


def download(tensor: Tensor) -> Tensor:
    """Copy a tensor to the host in stream order; its values are there once the stream has come so far."""
    if tensor.device.type != "cuda":
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
