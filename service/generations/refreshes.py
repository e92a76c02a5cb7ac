"""Refreshes: polls that clients ask for. No tenant gets all of their share of the budget."""

from service.generations.budget import Budget
from service.generations.places import Places
from service.model.clock import SECOND

SHARE = 10  # Refreshes get a tenth of the rate, and tokens that no other poll uses.
TENANT_SHARE = 2 * SHARE  # One tenant gets half of that: another one always finds a token.
PLACES_SHARE = 8  # Refreshes get an eighth of the places; one tenant alone gets half of it.


class Refreshes:
    """The share of refreshes in a rate of polls a second, and in the places for polls."""

    def __init__(self, rate: float, places: int) -> None:
        self.places = Places(places // PLACES_SHARE)
        self._at: dict[str, int] = {}  # By generation: its refresh within the last second.
        self.keep_to(rate)

    def keep_to(self, rate: float) -> None:
        """Begin anew with the share of another rate of polls a second."""
        self.rate = rate
        self._all = Budget(rate / SHARE, capacity=2 * max(1.0, rate / TENANT_SHARE))
        self._by_tenant: dict[str, Budget] = {}  # Those that are full again are dropped.

    def last_at(self, generation_id: str, now: int) -> int | None:
        """Return when a generation was refreshed, if that was within the last second."""
        self._at = {id_: at for id_, at in self._at.items() if 0 <= now - at < SECOND}
        return self._at.get(generation_id)

    def has_share(self, tenant: str, now: int) -> bool:
        """Whether a refresh of this tenant is within its share."""
        own = self._by_tenant.get(tenant)
        return self._all.available(now) >= 1 and (own is None or own.available(now) >= 1)

    def note(self, generation_id: str, tenant: str, now: int, *, has_share: bool) -> None:
        """Note a refresh that was started; without `has_share` it takes no token of the share."""
        self._at[generation_id] = now
        if not has_share:
            return
        used = {name: own for name, own in self._by_tenant.items() if not own.is_full(now)}
        own = used.setdefault(tenant, Budget(self.rate / TENANT_SHARE))
        self._by_tenant = used
        for budget in (self._all, own):
            budget.refill(now)
            budget.spend()
