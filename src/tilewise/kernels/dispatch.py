"""The choice between kernels and their twins: each operation asks its kernel, which declines with a reason, or runs.

Owns that choice, and how a step's attention is put together of decodes, fresh chunks and continued ones. The twins are
in `reference` and `resample`; torch's own operation is the twin where there is one.
"""

from contextlib import nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tilewise.kernels import pillow_resample, reference
from tilewise.kernels import resample as plain_resample
from tilewise.kernels.batch import AttentionBatch
from tilewise.kernels.head_norms import HeadNorms
from tilewise.kernels.optimisations import Optimisation, is_left_out
from tilewise.kernels.triton import activation, norm, resample, rope, skinny
from tilewise.kernels.triton import decode_attention as decodes
from tilewise.kernels.triton import prefill_attention as prefills
from tilewise.kernels.triton.launch import has_triton

# cuDNN before 9.15.1 was wrong for lengths that 128 does not divide, such as a tile's 1025.
_CUDNN_RIGHT_FROM = 91501
_OTHER_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_HAS_CUDNN = (torch.backends.cudnn.version() or 0) >= _CUDNN_RIGHT_FROM

_TRITON_DTYPES = {torch.float32, torch.float16, torch.bfloat16}


def decline(*tensors: Tensor) -> str | None:
    """Say why no elementwise Triton kernel takes these tensors together, or None if one does."""
    if torch.compiler.is_compiling():
        return "torch.compile fuses the twin itself"
    if is_left_out(Optimisation.ELEMENTWISE_KERNELS):
        return "elementwise kernels are left out"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "gradients are needed"
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= _TRITON_DTYPES:
        return f"dtypes are {', '.join(sorted(map(str, dtypes)))}"
    if any(tensor.stride(-1) != 1 for tensor in tensors):
        return "a last axis is not dense"
    if not all(tensor.is_cuda for tensor in tensors):
        return "not a CUDA device"
    return None if has_triton() else "triton is not installed"


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis; see `reference.rms_norm`."""
    if decline(x, weight) or norm.decline_row(x, weight):
        return reference.rms_norm(x, weight, eps)
    return norm.rms_norm(x, weight, eps)


def rms_norm_queries_and_keys_(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> None:
    """Normalise queries and keys inside a packed projection; see `reference.rms_norm_queries_and_keys_`."""
    if decline(qkv, q_weight, k_weight) or norm.decline_packed(qkv, q_weight, k_weight):
        reference.rms_norm_queries_and_keys_(qkv, q_weight, k_weight, eps)
    else:
        norm.rms_norm_queries_and_keys_(qkv, q_weight, k_weight, eps)


def add_rms_norm(
    residual: Tensor, x: Tensor, weight: Tensor, eps: float, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add a branch to the stream and normalise the sum: -> (normed, sum); see `reference.add_rms_norm`."""
    vectors = (weight,) if scale is None else (weight, scale)
    if residual.shape != x.shape or decline(residual, x, *vectors) or norm.decline_row(x, *vectors):
        return reference.add_rms_norm(residual, x, weight, eps, scale)
    return norm.add_rms_norm(residual, x, weight, eps, scale)


def add_layer_norm(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add a branch to the stream and take the sum's layer norm: -> (normed, sum); see `reference.add_layer_norm`."""
    vectors = (weight, bias) if scale is None else (weight, bias, scale)
    if residual.shape != x.shape or decline(residual, x, *vectors) or norm.decline_row(x, *vectors):
        return reference.add_layer_norm(residual, x, weight, bias, eps, scale)
    return norm.add_layer_norm(residual, x, weight, bias, eps, scale)


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    """SwiGLU's elementwise part, (..., 2I) -> (..., I); see `reference.silu_and_multiply`."""
    if decline(gate_up) or activation.decline_halves(gate_up):
        return reference.silu_and_multiply(gate_up)
    return activation.silu_and_multiply(gate_up)


def gelu(x: Tensor, bias: Tensor | None = None, may_overwrite: bool = False) -> Tensor:
    """Exact GELU of x + bias; see `reference.gelu`. With `may_overwrite`, what x holds afterwards is undefined."""
    if decline(x, *(() if bias is None else (bias,))) or activation.decline_bias(x, bias):
        return reference.gelu(x, bias)
    return activation.gelu(x, bias, may_overwrite)


def rope_and_write_kv(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor],
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    num_heads: int,
    returns_fresh: bool = False,
    norms: HeadNorms | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Rotate the queries and keys of a packed projection, each head normalised first if it has `norms`, and store.

    See `reference.rope_and_write_kv`; `angles` are cosines and sines.

    Returns the queries (T, Hq, D), and with `returns_fresh` the keys and values (T, Hkv, D) for chunks that start their
    sequence, the values as a view of `qkv`.
    """
    weights = () if norms is None else (norms.q_weight, norms.k_weight)
    is_declined = decline(qkv, k_cache, v_cache, *weights) or rope.decline_norms(norms, k_cache.shape[-1])
    if is_declined or rope.decline_layout(*angles, k_cache, v_cache, slots):
        q, k, v = reference.rope_and_write_kv(qkv, angles, k_cache, v_cache, slots, num_heads, norms)
        return q, (k, v) if returns_fresh else None
    return rope.rope_and_write_kv(qkv, angles, k_cache, v_cache, slots, num_heads, returns_fresh, norms)


def list_backends() -> list[SDPBackend]:
    """Torch's attentions in the order in which they are tried on a GPU."""
    if not _HAS_CUDNN or is_left_out(Optimisation.CUDNN_ATTENTION):
        return _OTHER_BACKENDS
    return [SDPBackend.CUDNN_ATTENTION, *_OTHER_BACKENDS]


def attend_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention inside each tile; see `reference.attend_tiles`."""
    if q.device.type != "cuda":
        return reference.attend_tiles(q, k, v)
    with sdpa_kernel(list_backends(), set_priority=True):
        return reference.attend_tiles(q, k, v)


@cache
def _create_side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def decline_capture(k_cache: Tensor) -> str | None:
    """Say why steps over a layer's cache cannot be captured, or None if they can: they need Triton's attention.

    Shapes: k_cache: (num_blocks, block_size, Hkv, D)
    """
    return decodes.decline_decodes(k_cache, k_cache)


def _attend_decodes(q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, out: Tensor) -> None:
    if decodes.decline_decodes(q, k_cache) is None:
        is_padded = batch.items is not None and not batch.chunks  # in a captured step that has room for chunks
        decodes.attend_decodes(q, k_cache, v_cache, batch.block_table, batch.lengths, out, is_padded)
        return
    # On a GPU one at a time: the twin copies contexts, and the plan has no room for all of them.
    size = 1 if q.device.type == "cuda" else len(q)
    parts = (x.split(size) for x in (out, q, batch.block_table, batch.lengths))
    for rows, queries, table, lengths in zip(*parts, strict=True):
        rows.copy_(reference.attend_decodes(queries, k_cache, v_cache, table, lengths))


def _attend_fresh(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of a chunk that starts its sequence: no context to gather, no mask to build."""
    if q.dtype == torch.float32:  # only the quadratic backend takes grouped queries in fp32
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    with sdpa_kernel(list_backends(), set_priority=True) if q.device.type == "cuda" else nullcontext():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)


def attend_cached(
    q: Tensor, fresh: tuple[Tensor, Tensor] | None, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch
) -> Tensor:
    """Let every token of the step see its own context, whose keys and values are all stored already.

    Chunks that start their sequence attend to `fresh`, which the step has where it has such chunks.

    Shapes: q: (T, Hq, D) · fresh: two (T, Hkv, D) · k_cache, v_cache: (num_blocks, block_size, Hkv, D) -> (T, Hq, D)
    """
    if fresh is not None and not batch.num_decodes and [chunk.start for chunk in batch.chunks] == [0]:
        return _attend_fresh(q, *fresh)
    out = torch.empty_like(q)
    uses_items = batch.items is not None and prefills.decline_items(q, k_cache) is None
    # Decodes read while chunks compute: a captured step runs them side by side, at no cost to the host.
    is_forked = uses_items and torch.cuda.is_current_stream_capturing()
    side = _create_side_stream(q.device) if is_forked and batch.num_decodes else None
    if side is not None:
        side.wait_stream(torch.cuda.current_stream())
    if batch.num_decodes:
        with nullcontext() if side is None else torch.cuda.stream(side):
            _attend_decodes(q[: batch.num_decodes], k_cache, v_cache, batch, out[: batch.num_decodes])
    if batch.items is not None and batch.chunk_table is not None and uses_items:
        prefills.attend_items(q, k_cache, v_cache, batch.chunk_table, batch.items, out)
    if side is not None:
        torch.cuda.current_stream().wait_stream(side)
    for number, chunk in enumerate(batch.chunks):
        tokens = slice(chunk.offset, chunk.offset + chunk.num_tokens)
        if chunk.start == 0 and fresh is not None:
            out[tokens] = _attend_fresh(q[tokens], *(part[tokens] for part in fresh))
        elif not uses_items:
            assert batch.chunk_table is not None
            k, v = reference.gather_context(k_cache, v_cache, batch.chunk_table[number], chunk.end)
            out[tokens] = reference.attend_prefill(q[tokens], k, v, chunk)
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x (..., K) with weight (N, K) and add bias (N,): (..., N)."""
    if skinny.decline(x, weight, bias):
        return F.linear(x, weight, bias)
    return skinny.multiply(x, weight, bias, skinny.choose_config_here(x, weight))


def linear_gated(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply x (..., K) with gate and up (2I, K) and apply SwiGLU: (..., I)."""
    if skinny.decline_gated(x, weight):
        return silu_and_multiply(linear(x, weight))
    return skinny.multiply_gated(x, weight, skinny.choose_config_here(x, weight, is_gated=True))


def resize_bicubic(image: Tensor, width: int, height: int) -> Tensor:
    """Resize like `PIL.Image.resize((width, height), BICUBIC)`; an unchanged size gives the picture itself.

    Shapes: image: (H, W, 3) uint8 -> (height, width, 3) uint8
    Numerics: bit-exact with Pillow's passes, horizontal first.
    """
    if image.shape[:2] == (height, width):
        return image
    if image.device.type == "cpu":
        return pillow_resample.resize_by_pillow(image, width, height)
    if resample.decline(image):
        return plain_resample.resize_plainly(image, width, height)
    out = image.new_empty(1, height, width, 3)
    resample.resize_into_tiles(image, out, width, height)
    return out[0]


def cut_tiles(image: Tensor, columns: int, rows: int, has_thumbnail: bool, tile_size: int) -> Tensor:
    """Resize to the grid and cut it row by row; the thumbnail, made from the source, comes last.

    Shapes: image: (H, W, 3) uint8 -> (N, tile_size, tile_size, 3) uint8
    Numerics: as `resize_bicubic`.
    """
    if image.device.type == "cpu":
        cut = pillow_resample.cut_by_pillow
    else:
        cut = plain_resample.cut_plainly if resample.decline(image) else resample.cut_in_place
    return cut(image, columns, rows, has_thumbnail, tile_size)


def normalize_tiles(tiles: Tensor, dtype: torch.dtype) -> Tensor:
    """Scale to [0, 1] and standardise with ImageNet's mean and deviation.

    Nothing is uploaded, so a graph may capture it; in Triton one that has run before.

    Shapes: tiles: (N, S, S, 3) uint8 -> (N, 3, S, S) dtype
    Numerics: fp32 until the last cast. fp16 arithmetic here is known to cost answers. In Triton every quotient is
        rounded to nearest, as on the CPU; torch on a GPU multiplies by reciprocals.
    """
    normalize = plain_resample.normalize_plainly if resample.decline(tiles) else resample.normalize_in_one_pass
    return normalize(tiles, dtype)
