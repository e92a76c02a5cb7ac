"""A share: the slots that a lane, a receiver or a tenant holds, and which of its parts wait."""

from msgspec import Struct, field

from service.delivery.window import Window

PUSHES = 64  # Into a queue before its outdated entries are removed; a long queue takes more.

# The slots that have to be free besides the one to take, the slots held, the turn, the share.
Entry = tuple[int, int, int, "Share"]


class Share(Struct, eq=False, weakref=True):
    """The slots of a lane, a receiver, a part of a tenant, a tenant, or all: each within the next."""

    parent: "Share | None" = None
    weight: int = 1  # How many slots it may hold for each one that is free.
    reserve: int = 0  # How many slots it leaves free, at least.
    held: int = 0
    window: Window | None = None  # Of a receiver whose lanes share one.
    queue: list[Entry] = field(default_factory=list)  # Parts that wait: a heap, some outdated.
    pushes_left: int = PUSHES
    entry: Entry | None = None  # The current one, in the queue of the parent.

    @property
    def has_used_window(self) -> bool:
        """True if the lanes share a window, and it allows no further attempt."""
        return self.window is not None and self.held >= self.window.size

    def has_room(self, free: int) -> bool:
        """True if one more slot may be taken while `free` are free."""
        # It runs for each attempt and each level, so it calls nothing.
        if free <= self.held // self.weight or free <= self.reserve:
            return False
        return self.window is None or self.held < self.window.size
