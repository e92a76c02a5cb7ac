"""Pages of lists: each from the index that has its rows in order, whatever is asked for.

A list is read along one or several ways. A way is a source whose index holds the rows that are
wanted in the order of their key; several are merged as they are read, so that a page costs its own
rows and no more. The last key of a page is the cursor.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from service.model.clock import MINUTE
from service.model.generation import OPEN, TERMINAL
from service.model.ids import first_id
from service.store.database import Row, Transaction
from service.store.stats import STATUSES

COUNTED_MAX = 1_000  # How far filters are counted, to find the one that leaves the fewest.
# An id that is further from its row's time is in the index generations_odd.
DRAWN_MS = MINUTE


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a list is wanted."""

    limit: int = 50
    after: str | None = None
    ascending: bool = False


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A list that can be asked for: its columns and table, and the column that orders it."""

    columns: str
    source: str
    key: str
    cursor: str = ":after"


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A source that yields rows in the order of its key.

    `where` is what its index answers; `rest` is looked at row by row, and `joins` adds columns.
    All are fixed text over named values, never text from outside. `placed`: `where` holds the
    cursor, too.
    """

    source: str
    key: str
    where: Sequence[str]
    rest: Sequence[str] = ()
    joins: str = ""
    placed: bool = False


GENERATIONS = Listing(
    columns="g.*, b.input, b.metadata, b.output, b.error",
    source="generations g JOIN generation_bodies b ON b.generation_id = g.id",
    key="g.id",
)
CALLBACKS = Listing(columns="*", source="callbacks", key="id")
SUBSCRIBERS = Listing(columns="*", source="subscribers", key="id")
DELIVERIES = Listing(columns="*", source="deliveries", key="id")
KEYS = Listing(columns="*", source="keys", key="id")
REPLAYS = Listing(columns="*", source="replays", key="id")
EVENTS = Listing(
    columns="*",
    source="events",
    key="seq",
    # The event itself; once retention has deleted it, the one before it. Ids of two processes may
    # be out of step with the order of their commits, so `id <= :after` alone would skip events.
    cursor=(
        "coalesce((SELECT seq FROM events WHERE id = :after), "
        "(SELECT seq FROM events WHERE id < :after ORDER BY id DESC LIMIT 1), 0)"
    ),
)


async def page(
    tx: Transaction,
    listing: Listing,
    wanted: Page,
    where: Sequence[str],
    values: Mapping[str, Any],
) -> tuple[list[Row], bool]:
    """Up to `limit` rows after the cursor, and whether there are more.

    `where` holds fixed conditions over named `values`, never text from outside.
    """
    way = Way(source=listing.source, key=listing.key, where=where)
    return await _read(tx, listing, wanted, [way], values)


async def _read(
    tx: Transaction,
    listing: Listing,
    wanted: Page,
    ways: Sequence[Way],
    values: Mapping[str, Any],
) -> tuple[list[Row], bool]:
    """A page of what all ways yield; no row is on two of them."""
    selects = [
        f"SELECT {way.key} AS place, {listing.columns} FROM {way.source} {way.joins} "  # noqa: S608
        f"WHERE {_clause(listing, wanted, way, way.rest)}"
        for way in ways
    ]
    order = "ASC" if wanted.ascending else "DESC"
    sql = f"{' UNION ALL '.join(selects)} ORDER BY place {order} LIMIT :limit"
    limits = {"limit": wanted.limit + 1, "after": wanted.after}
    rows = await tx.select(sql, {**values, **limits})
    return rows[: wanted.limit], len(rows) > wanted.limit


async def _count(
    tx: Transaction,
    listing: Listing,
    wanted: Page,
    ways: Sequence[Way],
    values: Mapping[str, Any],
) -> int:
    """How many rows the indexes of the ways leave, up to COUNTED_MAX of each."""
    found = 0
    for way in ways:
        clause = _clause(listing, wanted, way, ())
        sql = f"SELECT 1 FROM {way.source} WHERE {clause} LIMIT {COUNTED_MAX}"  # noqa: S608
        counted = f"SELECT count(*) AS count FROM ({sql})"  # noqa: S608  the same
        found += (await tx.select(counted, {**values, "after": wanted.after}))[0]["count"]
    return found


def _clause(listing: Listing, wanted: Page, way: Way, rest: Sequence[str]) -> str:
    conditions = [*way.where, *rest]
    if wanted.after is not None and not way.placed:
        conditions.append(f"{way.key} {'>' if wanted.ascending else '<'} {listing.cursor}")
    return " AND ".join(conditions) or "1"


class Generations(msgspec.Struct, frozen=True, kw_only=True):
    """Which generations are wanted."""

    status: str | None = None
    model: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    metadata: Mapping[str, str] = {}


_BODIES = "CROSS JOIN generation_bodies b ON b.generation_id = g.id"


async def generations(
    tx: Transaction, wanted: Page, tenant: str, only: Generations
) -> tuple[list[Row], bool]:
    """A page of a tenant's generations, read along the filter that leaves the fewest."""
    values = {**msgspec.structs.asdict(only), "tenant": tenant, "metadata": None}
    for number, (name, value) in enumerate(only.metadata.items()):
        values |= {f"name{number}": name, f"value{number}": value}
    if only.created_after is not None:
        values["first_id"] = first_id("gen", only.created_after - DRAWN_MS)
    if only.created_before is not None:
        values["last_id"] = first_id("gen", only.created_before + DRAWN_MS + 1)
    choices = _choices(wanted, only)
    chosen = choices[0]
    if len(choices) > 1:
        counts = [await _count(tx, GENERATIONS, wanted, ways, values) for ways in choices]
        chosen = choices[counts.index(min(counts))]
    return await _read(tx, GENERATIONS, wanted, [*chosen, *_odd(only)], values)


def _choices(wanted: Page, only: Generations) -> list[list[Way]]:
    """The ways to read along: each of the metadata, and the index of status and model."""
    conditions = _conditions(only)
    choices = []
    for number in range(len(only.metadata)):
        key = f"m{number}.generation_id"
        way = Way(
            source=f"generation_metadata m{number}",
            key=key,
            where=[*_metadata(number), *_between(wanted, only, key)],
            rest=[*conditions, *_others(only, number)],
            joins=f"CROSS JOIN generations g ON g.id = {key} {_BODIES}",
            placed=True,
        )
        choices.append([way])
    if only.metadata and only.status is None and only.model is None:
        return choices
    return [*choices, _plain_ways(wanted, only, [*conditions, *_others(only)])]


def _plain_ways(wanted: Page, only: Generations, rest: Sequence[str]) -> list[Way]:
    index, fixed = "generations_tenant", [["g.tenant = :tenant"]]
    if only.model is not None:
        statuses = [only.status] if only.status else [*OPEN, *TERMINAL]
        index = "generations_model"
        fixed = [
            ["g.tenant = :tenant", "g.model = :model", f"g.status = '{word}'"] for word in statuses
        ]
    elif only.status is not None:
        index, fixed = "generations_status", [["g.tenant = :tenant", "g.status = :status"]]
    source, between = f"generations g INDEXED BY {index}", _between(wanted, only, "g.id")
    return [
        Way(
            source=source,
            key="g.id",
            where=[*where, *between],
            rest=rest,
            joins=_BODIES,
            placed=True,
        )
        for where in fixed
    ]


def _between(wanted: Page, only: Generations, key: str) -> list[str]:
    """One bound for the ids on either side, of the times and the cursor: an index takes no more."""
    above = [] if only.created_after is None else [":first_id"]
    below = [] if only.created_before is None else [":last_id"]
    if wanted.after is not None:
        (above if wanted.ascending else below).append(":after")
    found = (
        [f"{key} > {above[0] if len(above) == 1 else 'max(:first_id, :after)'}"] if above else []
    )
    if below:
        found.append(f"{key} < {below[0] if len(below) == 1 else 'min(:last_id, :after)'}")
    return found


def _odd(only: Generations) -> list[Way]:
    """The way to rows whose id is not near their time, as far as it is outside the bounds."""
    bounds = _between(Page(), only, "g.id")
    if not bounds:
        return []
    odd = (
        "substr(g.id, 5, 12) NOT BETWEEN printf('%012x', g.created_at - 60000) "
        "AND printf('%012x', g.created_at + 60000)"
    )
    way = Way(
        source="generations g INDEXED BY generations_odd",
        key="g.id",
        where=["g.tenant = :tenant", odd],
        rest=[f"NOT ({' AND '.join(bounds)})", *_conditions(only), *_others(only)],
        joins=_BODIES,
    )
    return [way]


def _conditions(only: Generations) -> list[str]:
    conditions = {
        "status": "g.status = :status",
        "model": "g.model = :model",
        "created_after": "g.created_at > :created_after",
        "created_before": "g.created_at < :created_before",
    }
    return [said for name, said in conditions.items() if getattr(only, name) is not None]


def _metadata(number: int) -> list[str]:
    columns = {"tenant": "tenant", "name": f"name{number}", "value": f"value{number}"}
    return [f"m{number}.{column} = :{value}" for column, value in columns.items()]


def _others(only: Generations, but: int | None = None) -> list[str]:
    """Every name of the metadata that is asked for, but one."""
    return [
        f"EXISTS (SELECT 1 FROM generation_metadata m{number} "  # noqa: S608  fixed parts
        f"WHERE {' AND '.join(_metadata(number))} AND m{number}.generation_id = g.id)"
        for number in range(len(only.metadata))
        if number != but
    ]


class Deliveries(msgspec.Struct, frozen=True, kw_only=True):
    """Which deliveries are wanted."""

    status: str | None = None
    subscriber_id: str | None = None
    event_id: str | None = None


async def deliveries(
    tx: Transaction, wanted: Page, tenant: str, only: Deliveries
) -> tuple[list[Row], bool]:
    """A page of a tenant's deliveries."""
    values = {**msgspec.structs.asdict(only), "tenant": tenant}
    if only.subscriber_id is not None:
        owner = await tx.one("delivery_tenant", subscriber_id=only.subscriber_id)
        if owner is None or owner["tenant"] != tenant:
            return [], False
    asked = [f"{name} = :{name}" for name, value in values.items() if value is not None]
    if only.event_id is not None:
        ways = [Way(source="deliveries INDEXED BY deliveries_event", key="id", where=asked)]
    elif only.subscriber_id is not None:
        statuses = [only.status] if only.status else STATUSES
        source = "deliveries INDEXED BY deliveries_subscriber"
        ways = [
            Way(source=source, key="id", where=[*asked, f"status = '{status}'"])
            for status in statuses
        ]
    elif only.status is not None and only.status != "delivered":
        asked.append("status <> 'delivered'")  # What the index is for, said as it says it.
        ways = [Way(source="deliveries INDEXED BY deliveries_status", key="id", where=asked)]
    else:
        ways = [Way(source="deliveries", key="id", where=asked)]
    return await _read(tx, DELIVERIES, wanted, ways, values)


class Callbacks(msgspec.Struct, frozen=True, kw_only=True):
    """Which callbacks are wanted."""

    verdict: str | None = None
    generation_id: str | None = None


async def callbacks(
    tx: Transaction, wanted: Page, tenants: Sequence[str], only: Callbacks
) -> tuple[list[Row], bool]:
    """A page of the callbacks of one tenant or a few; those that no token names are of ''."""
    values: dict[str, Any] = msgspec.structs.asdict(only)
    asked = [f"{name} = :{name}" for name, value in values.items() if value is not None]
    source = "callbacks"
    if only.generation_id is not None:
        source = "callbacks INDEXED BY callbacks_generation"
    elif only.verdict is not None and only.verdict != "accepted":
        source = "callbacks INDEXED BY callbacks_verdict"
        asked.append("verdict <> 'accepted'")  # What the index is for, said as it says it.
    ways = []
    for number, tenant in enumerate(tenants):
        values[f"tenant{number}"] = tenant
        ways.append(Way(source=source, key="id", where=[f"tenant = :tenant{number}", *asked]))
    return await _read(tx, CALLBACKS, wanted, ways, values)


class Events(msgspec.Struct, frozen=True, kw_only=True):
    """Which events are wanted."""

    type: str | None = None
    generation_id: str | None = None


async def events(
    tx: Transaction, wanted: Page, tenant: str, only: Events
) -> tuple[list[Row], bool]:
    """A page of a tenant's events, in the order of their commits."""
    values = {**msgspec.structs.asdict(only), "tenant": tenant}
    asked = [f"{name} = :{name}" for name, value in values.items() if value is not None]
    index = "events_tenant" if only.type is None else "events_type"
    index = index if only.generation_id is None else "events_generation"
    way = Way(source=f"events INDEXED BY {index}", key="seq", where=asked)
    return await _read(tx, EVENTS, wanted, [way], values)
