"""Whose turn it is: namespaces share a step's tokens and tiles, the slots of a batch, and the blocks of the cache.

    what                 | who is served
    a step's prompts     | the next one of the namespace that has cost least, where it has prompts to compute
    a slot, blocks       | the same order; where none are left, the youngest of who holds most makes way, as long as
                         | its namespace keeps no less than the newcomer's then has: so nobody is preempted in turn

A cost counts tokens, and `tile_work` for a tile. Within a namespace the order is that of arrival, and one namespace
alone is served as if there were none of this. A namespace that has no prompts to compute earns no credit: it returns
at the least cost of those that have. What it owes it keeps until the others have cost as much, and no longer.

No clock, no torch, and no knowledge of what a step may hold.

Source: Demers, Keshav and Shenker 1989, "Analysis and Simulation of a Fair Queueing Algorithm"; Goyal, Vin and Cheng
1996, "Start-time Fair Queueing", section 2, for arrivals and the end of a busy period; Sheng et al. 2024, "Fairness in
Serving Large Language Models", section 4, for counters of tokens in a continuous batch. Neither preempts.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import chain

from tilewise.scheduling.sequence import Sequence


class Waiting:
    """Waiting sequences: a line for each namespace that has any."""

    def __init__(self) -> None:
        """Start with nobody."""
        self.lines: dict[str, deque[Sequence]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.lines.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(self.lines.values())

    def append(self, sequence: Sequence) -> None:
        """Let it wait behind those of its namespace."""
        self.lines.setdefault(sequence.request.namespace, deque()).append(sequence)

    def appendleft(self, sequence: Sequence) -> None:
        """Let it wait before those of its namespace."""
        self.lines.setdefault(sequence.request.namespace, deque()).appendleft(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take it out of its line."""
        line = self.lines[sequence.request.namespace]
        line.remove(sequence)
        if not line:
            del self.lines[sequence.request.namespace]


class Shares:
    """What each namespace has cost: its virtual time."""

    def __init__(self) -> None:
        """Start without an account."""
        self._costs: dict[str, int] = {}
        self._active: set[str] = set()
        self._least = 0

    def __len__(self) -> int:
        return len(self._costs)

    def cost(self, namespace: str) -> int:
        """Return what it has cost; one without an account is no better off than who has cost least."""
        return self._costs.get(namespace, self._least)

    def charge(self, namespace: str, cost: int) -> None:
        """Count tokens, or the work of tiles."""
        self._costs[namespace] = self.cost(namespace) + cost

    def begin_step(self, running: Iterable[Sequence], waiting: Waiting) -> None:
        """Find who has prompts to compute; drop each other account that owes nothing."""
        active = {sequence.request.namespace for sequence in running if not sequence.is_decoding}
        active.update(waiting.lines)
        stayed = active & self._active
        if not stayed:  # nobody has waited for what the others did: nobody owes
            self.clear()
            self._active = active
            return
        self._active = active
        least = self._least = min(map(self.cost, stayed))
        self._costs = {name: cost for name, cost in self._costs.items() if cost > least or name in active}
        for namespace in active:
            self._costs[namespace] = max(least, self.cost(namespace))

    def order_heads(self, running: Iterable[Sequence], waiting: Waiting) -> list[Sequence]:
        """Sort the first of every line that may be admitted by whose turn it is; none where there is one namespace."""
        if not waiting.lines:
            return []
        num_slots = Counter(sequence.request.namespace for sequence in running)
        if len(num_slots.keys() | waiting.lines.keys()) < 2:
            return []
        heads = [line[0] for line in waiting.lines.values() if not line[0].num_pending]
        return sorted(heads, key=lambda head: rank(self, head, num_slots))

    def clear(self) -> None:
        """Drop every account."""
        self._costs, self._active, self._least = {}, set(), 0


class Turns:
    """The prompts of one step in fair order: of a namespace first those that run, then those that wait.

    Iterate once. Costs are read at each turn. Of those that wait, each is to be admitted before the next is asked for,
    or is passed over; `close` ends admission.
    """

    def __init__(self, shares: Shares, running: Iterable[Sequence], waiting: Waiting) -> None:
        """`running` is in order of age."""
        self._shares, self._waiting = shares, waiting
        self._prefills: dict[str, deque[Sequence]] = {}
        self._num_slots: Counter[str] = Counter()
        for sequence in running:
            namespace = sequence.request.namespace
            self._num_slots[namespace] += 1
            if not sequence.is_decoding:
                self._prefills.setdefault(namespace, deque()).append(sequence)
        self._num_passed: Counter[str] = Counter()
        self._closed: set[str] = set()
        self._is_closed = False

    @property
    def are_shared(self) -> bool:
        """Several namespaces have prompts to compute, and somebody reads an answer of theirs as it comes."""
        lines = *self._prefills.values(), *self._waiting.lines.values()
        names = {*self._prefills, *self._waiting.lines}
        return len(names) > 1 and any(sequence.request.is_streamed for line in lines for sequence in line)

    def close(self, namespace: str | None = None) -> None:
        """Admit no more of this namespace, or of any, in this step; what runs still has its turns."""
        if namespace is None:
            self._is_closed = True
        else:
            self._closed.add(namespace)

    def __iter__(self) -> Iterator[Sequence]:
        order: list[tuple[int, int, int, str]] = []
        for namespace in {*self._prefills, *self._waiting.lines}:
            self._push(order, namespace)
        while order:
            namespace = heappop(order)[-1]
            sequence = self._peek(namespace)
            if sequence is None:  # closed meanwhile
                continue
            prefills = self._prefills.get(namespace)
            if prefills:
                prefills.popleft()
                yield sequence
            else:
                yield sequence
                self._num_passed[namespace] += not sequence.blocks
            self._push(order, namespace)

    def _push(self, order: list[tuple[int, int, int, str]], namespace: str) -> None:
        sequence = self._peek(namespace)
        if sequence is not None:
            heappush(order, (*rank(self._shares, sequence, self._num_slots), namespace))

    def _peek(self, namespace: str) -> Sequence | None:
        prefills = self._prefills.get(namespace)
        if prefills:
            return prefills[0]
        line, num_passed = self._waiting.lines.get(namespace, ()), self._num_passed[namespace]
        if self._is_closed or namespace in self._closed or num_passed >= len(line):
            return None
        return line[num_passed]


def rank(shares: Shares, sequence: Sequence, num_slots: Counter[str]) -> tuple[int, int, int]:
    """Least cost first; among equals who has fewer slots, so that a flood leaves a newcomer's first step to it."""
    namespace = sequence.request.namespace
    return shares.cost(namespace), num_slots[namespace], sequence.id


def holds_most(sequence: Sequence, running: Iterable[Sequence]) -> bool:
    """Tell whether no other namespace holds more blocks than that of `sequence`."""
    num_blocks = _count_blocks(running)
    return num_blocks[sequence.request.namespace] >= max(num_blocks.values(), default=0)


def choose_loser(running: list[Sequence], growing: Sequence) -> Sequence:
    """Choose who gives its blocks back for one that grows: the youngest of the namespace that holds most.

    Where that namespace would then hold less than the growing one's, it is one that is not older than `growing`. So the
    oldest of all always gets on, and of one namespace alone the youngest loses.
    """
    num_blocks, own = _count_blocks(running), growing.request.namespace

    def hold(sequence: Sequence) -> tuple[int, int]:
        return num_blocks[sequence.request.namespace], sequence.id

    loser = max(running, key=hold)
    kept = num_blocks[loser.request.namespace] - len(loser.blocks)
    if loser.request.namespace != own and kept > num_blocks[own]:
        return loser
    return max((sequence for sequence in running if sequence.id >= growing.id), key=hold)


def choose_victims(
    newcomer: Sequence,
    num_blocks: int,
    num_hits: int,
    running: list[Sequence],
    room: tuple[int, int],
    count_sole: Callable[[list[int]], int],
) -> list[Sequence]:
    """Choose whom to preempt so that `newcomer` can be admitted, or nobody where it has no right to that.

    It would hold `num_blocks`, of which `num_hits` are cached; `room` are the slots and the blocks that are free.
    `count_sole` counts blocks that nobody else holds. From a namespace with most slots, or blocks, its youngest is
    taken as long as the namespace keeps at least as many as the newcomer's then has.
    """
    own, (num_slots, num_free) = newcomer.request.namespace, room
    slots = Counter(sequence.request.namespace for sequence in running)
    blocks = _count_blocks(running)
    left, victims = list(running), list[Sequence]()
    while num_slots < 1 or num_free < num_blocks - num_hits:
        lacks_slot = num_slots < 1
        shares = slots if lacks_slot else blocks
        others = [sequence for sequence in left if sequence.request.namespace != own]
        if not others:
            return []
        victim = max(others, key=lambda sequence: (shares[sequence.request.namespace], sequence.id))
        kept = shares[victim.request.namespace] - (1 if lacks_slot else len(victim.blocks))
        if kept < shares[own] + (1 if lacks_slot else num_blocks):
            return []
        left.remove(victim)
        victims.append(victim)
        slots[victim.request.namespace] -= 1
        blocks[victim.request.namespace] -= len(victim.blocks)
        num_slots += 1
        num_free += count_sole(victim.blocks)
    return victims


def _count_blocks(running: Iterable[Sequence]) -> Counter[str]:
    num_blocks: Counter[str] = Counter()
    for sequence in running:
        num_blocks[sequence.request.namespace] += len(sequence.blocks)
    return num_blocks
