"""Which block holds which prefix: a chain of digests, each over its parent and what one block adds to it.

A digest covers the namespace, all tokens so far and, where a block lies in a picture, the picture's content
with its tiling and the offset inside it. So equal digests mean equal keys and values.

    namespace -> H(ids 0..63) -> H(ids 64..127, picture a from 37) -> …
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from tilewise.types import Request

_DIGEST_BYTES = 16


def extend_digests(digests: list[bytes], request: Request, token_ids: Sequence[int], block_size: int) -> None:
    """Append the digest of every full block of `token_ids` that `digests` does not cover yet.

    `token_ids` begin with the request's prompt, and `digests` with the digests of their first blocks.
    """
    namespace = request.namespace.encode(errors="surrogatepass")
    parent = digests[-1] if digests else blake2b(namespace, digest_size=_DIGEST_BYTES).digest()
    spans = request.spans
    first_span = 0
    for start in range(len(digests) * block_size, len(token_ids) - block_size + 1, block_size):
        end = start + block_size
        digest = blake2b(parent, digest_size=_DIGEST_BYTES)
        digest.update(array("I", token_ids[start:end]).tobytes())
        while first_span < len(spans) and spans[first_span].end <= start:
            first_span += 1
        for span in spans[first_span:]:
            if span.start >= end:
                break
            digest.update(span.start.to_bytes(4, "little"))
            digest.update(request.images[span.image].digest)
        parent = digest.digest()
        digests.append(parent)


class PrefixCache:
    """The map between digests and blocks, both ways; a block has at most one digest and a digest one block."""

    def __init__(self) -> None:
        """Start empty."""
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        """Count identified blocks."""
        return len(self._block_of)

    def find(self, digest: bytes) -> int | None:
        """Return the block that holds this prefix's last tokens."""
        return self._block_of.get(digest)

    def publish(self, digest: bytes, block: int) -> None:
        """Say that `block` now holds `digest`; the first of two equal blocks keeps the identity."""
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def is_identified(self, block: int) -> bool:
        """Tell whether the content of `block` has an identity."""
        return block in self._digest_of

    def forget(self, block: int) -> None:
        """Take the identity of a block whose content is about to change."""
        if (digest := self._digest_of.pop(block, None)) is not None:
            del self._block_of[digest]

    def check_integrity(self) -> None:
        """Raise unless the two maps are inverse to each other."""
        assert len(self._block_of) == len(self._digest_of), "the maps differ in size"
        for digest, block in self._block_of.items():
            assert self._digest_of.get(block) == digest, f"block {block} has another digest"
