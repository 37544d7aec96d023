"""The mutable state of one request inside the engine."""

from tilewise.types import PreparedImage, Request


class Sequence:
    """The mutable state of one request: what is computed, what is known, which blocks it holds."""

    def __init__(self, sequence_id: int, request: Request, max_new_tokens: int) -> None:
        """Start with nothing computed."""
        self.id = sequence_id
        self.request = request
        self.max_new_tokens = max_new_tokens
        self.token_ids = list(request.token_ids)
        self.blocks: list[int] = []
        self.digests: list[bytes] = []
        self.num_scheduled = 0
        self.num_pending = 0
        self.num_published = 0
        self.cached_tokens = 0
        self.was_admitted = False

    def find_image(self) -> PreparedImage | None:
        """The picture that has the next position, or comes first after it."""
        for span in self.request.spans:
            if span.end > self.num_scheduled:
                return self.request.images[span.image]
        return None

    def needs_image(self, digest: bytes) -> bool:
        """Whether positions of this picture are still to be scheduled."""
        spans = (span for span in self.request.spans if span.end > self.num_scheduled)
        return any(self.request.images[span.image].digest == digest for span in spans)

    @property
    def num_generated(self) -> int:
        """Tokens sampled and known."""
        return len(self.token_ids) - len(self.request.token_ids)

    @property
    def is_decoding(self) -> bool:
        """All but the newest token are computed or on their way; a prompt's last one may lie in a picture."""
        is_newest_next = self.num_scheduled + 1 == len(self.token_ids) + self.num_pending
        return is_newest_next and self.num_scheduled >= len(self.request.token_ids)

    @property
    def has_room(self) -> bool:
        """Another token may be sampled."""
        return self.num_generated + self.num_pending < self.max_new_tokens
