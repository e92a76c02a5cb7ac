"""Places for requests to upstream under way: bounded, and shared by tenants and status paths."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from service.store.shards import shard_of
from service.upstream.catalogue import STATUS_PATH, Model

UNPLACED_TENANTS_MAX = 100


class Places:
    """Places that tenants share: a tenant takes another only while more are free than it holds.

    One tenant alone gets half of them, the next one half of the rest, and so on: none can hold so
    many that the first request of another finds no place.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self._held = Counter[str]()

    @property
    def free(self) -> int:
        """How many places are free."""
        return self.size - self.taken

    def has_room(self, tenant: str) -> bool:
        """Whether the tenant may take a further place."""
        return self.free > self._held[tenant]

    def take(self, tenant: str) -> bool:
        """Take a place for the tenant; False if there is none for it."""
        if not self.has_room(tenant):
            return False
        self.taken += 1
        self._held[tenant] += 1
        return True

    def give_back(self, tenant: str) -> None:
        """Give a place back that was taken for the tenant."""
        self.taken -= 1
        self._held[tenant] -= 1
        self._held += Counter()  # Forgets the tenants without a place.

    def full(self) -> list[str]:
        """Return the tenants that hold places and get no further one."""
        return [tenant for tenant in self._held if not self.has_room(tenant)]


class Unplaced:
    """The shards with generations that found no place, until none of them is due any more.

    They are kept by tenant, each with its latest generation.
    """

    def __init__(self) -> None:
        self._ids: dict[str, dict[int, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._ids)

    def note(self, tenant: str, id_: str) -> None:
        """Keep the shard of a generation that found no place; if there are many, drop old ones."""
        self._ids.setdefault(tenant, {})[shard_of(id_)] = id_
        if len(self._ids) > UNPLACED_TENANTS_MAX:
            del self._ids[next(iter(self._ids))]

    def shards_with_room(self, places: Places) -> set[int]:
        """Return the shards of the tenants that would get a place now."""
        return {
            shard for tenant, ids in self._ids.items() if places.has_room(tenant) for shard in ids
        }

    def ids(self) -> list[tuple[str, str]]:
        """Return each tenant with each of its generations."""
        return [(tenant, id_) for tenant, ids in self._ids.items() for id_ in ids.values()]

    def forget(self, tenant: str, id_: str) -> None:
        """Forget the shard of a generation, unless another one has found no place there since."""
        ids = self._ids.get(tenant, {})
        if ids.get(shard := shard_of(id_)) == id_:
            del ids[shard]
        if not ids:
            self._ids.pop(tenant, None)


class PathPlaces:
    """Places for polls. A status path may hang, so it gets half of them, for its tenants."""

    def __init__(self, size: int) -> None:
        self.all = Places(size)
        self._by_path = defaultdict[str, Places](lambda: Places(size // 2))  # As few as paths.

    def take(self, path: str, tenant: str) -> bool:
        """Take a place for a poll at a status path; False if the tenant or the path has none."""
        of_path = self._by_path[path]
        return of_path.has_room(tenant) and self.all.take(tenant) and of_path.take(tenant)

    def give_back(self, path: str, tenant: str) -> None:
        """Give the place back that was taken for a poll at a status path."""
        self.all.give_back(tenant)
        self._by_path[path].give_back(tenant)

    def full(self) -> list[tuple[str, str]]:
        """Return each (path, tenant) that gets no further place; the tenant "" is every one."""
        return [
            (path, tenant)
            for path, places in self._by_path.items()
            for tenant in (places.full() if places.free else [""])
        ]


def full_models(
    places: PathPlaces, load: Callable[[], Mapping[str, Model]]
) -> tuple[Sequence[str], Sequence[str]]:
    """Return the models with a status path of their own, and each "model tenant" that is full.

    Full: it gets no further place. Without a tenant it is every one. Without a model it is each
    model of the usual status path: those that are not in the catalogue cannot be listed.
    """
    full = places.full()
    if not full:
        return (), ()  # So it is at the start, which loading the catalogue would delay.
    apart = {id_: m.status_path for id_, m in load().items() if m.status_path != STATUS_PATH}
    by_path: dict[str, list[str]] = {STATUS_PATH: [""]}
    for id_, path in apart.items():
        by_path.setdefault(path, []).append(id_)
    return [*apart], [f"{model} {tenant}" for path, tenant in full for model in by_path[path]]
