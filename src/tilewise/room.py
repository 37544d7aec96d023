"""So much of something, which owners hold parts of: answers, work, pixels or threads, held by API keys.

Where several owners share it, what one holds stays within what is left free then: alone it holds half, two hold a third
each, and a newcomer finds as much as the others have. What is free is never fixed parts of each, so that a key that
nobody uses costs the others little. Not locked: whoever shares it between threads locks it.

Source: Choudhury and Hahne 1998, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", section III, with
a factor of 1.
"""

from collections import Counter


class SharedRoom:
    """A capacity and who holds how much of it."""

    def __init__(self, capacity: int, *, is_shared: bool = False) -> None:
        """Start empty; unless `is_shared`, one owner may hold it all."""
        self.capacity, self.is_shared = capacity, is_shared
        self.total = 0
        self._held: Counter[str] = Counter()

    def held(self, owner: str) -> int:
        """Return what an owner holds."""
        return self._held[owner]

    def fits(self, amount: int) -> bool:
        """Tell whether there is so much left; alone, any may come."""
        return not self.total or self.total + amount <= self.capacity

    def fits_share(self, owner: str, amount: int) -> bool:
        """Tell whether an owner may have so much more of what is left; who has nothing may."""
        held = self._held[owner]
        if not self.is_shared or not held:
            return True
        num_free_then = self.capacity - self.total - amount
        return held + amount <= num_free_then

    def take(self, owner: str, amount: int) -> None:
        """Count it as held."""
        self.total += amount
        self._held[owner] += amount

    def give_back(self, owner: str, amount: int) -> None:
        """Count it as free again."""
        self.total -= amount
        self._held[owner] -= amount
        if not self._held[owner]:
            del self._held[owner]
