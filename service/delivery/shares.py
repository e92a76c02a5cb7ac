"""A share: the slots that a lane, a receiver or a tenant holds, and which of its parts wait."""

from msgspec import Struct, field

from service.delivery.window import Window

PUSHES = 64  # Into a queue, after which it is rid of outdated entries; of a long one, more.

# How many slots have to be free besides the one that is taken, slots held, turn.
Entry = tuple[int, int, int, "Share"]


class Share(Struct, eq=False, weakref=True):
    """The slots of a lane, a receiver, a part of a tenant, a tenant, all: each is in the next."""

    parent: "Share | None" = None
    weight: int = 1  # So many slots may it hold for each one that is free.
    reserve: int = 0  # So many slots stay free, at least.
    held: int = 0
    window: Window | None = None  # Of a receiver whose lanes share one.
    queue: list[Entry] = field(default_factory=list)  # Parts that wait: a heap, with outdated ones.
    pushes_left: int = PUSHES
    entry: Entry | None = None  # The current one, in the queue of the parent.

    @property
    def has_used_window(self) -> bool:
        """True if the lanes share a window, and it allows no more."""
        return self.window is not None and self.held >= self.window.size

    def has_room(self, free: int) -> bool:
        """True if one more may be taken while so many slots are free."""
        # Each attempt asks this of each share, so it does without calls.
        if free <= self.held // self.weight or free <= self.reserve:
            return False
        return self.window is None or self.held < self.window.size
