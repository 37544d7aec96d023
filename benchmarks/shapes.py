"""The decoders and towers of the family by their sizes; a checkpoint's own configuration counts where there is one."""

from tilewise.config import DecoderConfig, VisionConfig

_QWEN_VOCABULARY, _QWEN3_VOCABULARY = 151_674, 151_936


def _qwen2(width: int, layers: int, heads: int, kv_heads: int, inner: int) -> DecoderConfig:
    head_dim = width // heads
    return DecoderConfig(
        "qwen2", width, inner, layers, heads, kv_heads, head_dim, _QWEN_VOCABULARY, 32768, 1e-6, 1e6, use_qkv_bias=True
    )


def _qwen3(width: int, layers: int, heads: int, inner: int) -> DecoderConfig:
    return DecoderConfig(
        "qwen3", width, inner, layers, heads, 8, 128, _QWEN3_VOCABULARY, 40960, 1e-6, 1e6, use_qk_norm=True
    )


def _internlm2(width: int, layers: int, heads: int, inner: int) -> DecoderConfig:
    return DecoderConfig("internlm2", width, inner, layers, heads, 8, 128, 92553, 32768, 1e-5, 1e6)


DECODERS = {
    "qwen2-0.5b": _qwen2(896, 24, 14, 2, 4864),
    "qwen2-1.5b": _qwen2(1536, 28, 12, 2, 8960),
    "qwen2-3b": _qwen2(2048, 36, 16, 2, 11008),
    "qwen2-7b": _qwen2(3584, 28, 28, 4, 18944),
    "qwen2-14b": _qwen2(5120, 48, 40, 8, 13824),
    "qwen2-32b": _qwen2(5120, 64, 40, 8, 27648),
    "qwen2-72b": _qwen2(8192, 80, 64, 8, 29568),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728),
    "qwen3-8b": _qwen3(4096, 36, 32, 12288),
    "qwen3-14b": _qwen3(5120, 40, 40, 17408),
    "qwen3-32b": _qwen3(5120, 64, 64, 25600),
    "internlm2-1.8b": _internlm2(2048, 24, 16, 8192),
    "internlm2-7b": _internlm2(4096, 32, 32, 14336),
    "internlm2-20b": _internlm2(6144, 48, 48, 16384),
}
TOWERS = {
    "300m": VisionConfig(1024, 24, 16, 4096, norm_type="layer_norm", use_qk_norm=False, use_qkv_bias=True),
    "6b": VisionConfig(3200, 45, 25, 12800),
}


def list_products(decoder: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of the weights that a decode step multiplies by; the head's rows are padded."""
    width, inner = decoder.hidden_size, decoder.intermediate_size
    q, kv = decoder.num_heads * decoder.head_dim, decoder.num_kv_heads * decoder.head_dim
    return {
        "qkv": (q + 2 * kv, width),
        "o": (width, q),
        "gate_up_silu": (2 * inner, width),
        "down": (width, inner),
        "head": (-(-decoder.vocab_size // 128) * 128, width),
    }
