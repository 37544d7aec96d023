"""The decoders and towers of the family by their sizes, as the catalogue has them, and a decoder's products."""

from tilewise import catalogue
from tilewise.config import DecoderConfig

DECODERS = {
    name.lower(): language_model.decoder
    for name, language_model in catalogue.LANGUAGE_MODELS.items()
    if language_model.decoder is not None
}
TOWERS = {name.lower(): tower for name, tower in catalogue.TOWERS.items()}


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
