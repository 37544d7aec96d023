"""The mutable state of one request inside the engine."""

from tilewise.types import Request


class Sequence:
    """The mutable state of one request: what is computed, what is known, which blocks it holds."""

    def __init__(self, sequence_id: int, request: Request, max_new_tokens: int, is_ready: bool = True) -> None:
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
        self.is_ready = is_ready

    def find_images_ahead(self) -> set[bytes]:
        """The digests of pictures of which positions are still to be scheduled."""
        spans = self.request.spans
        if not spans or spans[-1].end <= self.num_scheduled:
            return set()
        return {self.request.images[span.image].digest for span in spans if span.end > self.num_scheduled}

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
