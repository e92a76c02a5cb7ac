"""The lines in front of the writer: tenants have turns, and a turn is a number of rows."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from service.store import lines
from service.store.item import Item
from service.store.lines import Lines
from service.store.sqlite import group
from service.store.sqlite.database import Database
from service.store.sqlite.group import Transaction

HEAVY = 1_000  # As many rows as the events of one generation are owed to.


async def light(_tx: Transaction, _name: str) -> None: ...


async def heavy(_tx: Transaction, _name: str) -> None: ...


@pytest.fixture
async def waiting() -> Lines:  # Within an event loop, as items have futures.
    return Lines()


def add(waiting: Lines, tenant: str, count: int, unit: Any = light) -> list[Item]:
    items = [Item(unit, (f"{tenant}{number}",), tenant=tenant) for number in range(count)]
    for item in items:
        waiting.append(item)
    return items


def run(items: Iterable[Item]) -> None:
    """Let items run, as a group does."""
    for item in items:
        item.has_run, item.rows = True, HEAVY if item.unit is heavy else None


def commit(waiting: Lines) -> list[Item]:
    """Run the next group, all of it; return its items."""
    items = waiting.take()
    run(items)
    waiting.learn(items)
    return items


def learn_heavy(waiting: Lines, tenant: str) -> None:
    add(waiting, tenant, 1, heavy)
    commit(waiting)


def counts(items: Iterable[Item]) -> Counter[tuple[str | None, str]]:
    return Counter((item.tenant, item.unit.__name__) for item in items)


async def test_one_tenant_alone_fills_a_group_in_its_order(waiting: Lines) -> None:
    items = add(waiting, "a", lines.GROUP_MAX + 1)
    assert waiting.take() == items[:-1]
    assert len(waiting) == 1
    assert waiting.take() == items[-1:]
    assert waiting.take() == []


async def test_a_tenant_is_not_behind_all_that_another_has_waiting(waiting: Lines) -> None:
    add(waiting, "a", 3 * lines.GROUP_MAX)
    [mine] = add(waiting, "b", 1)
    assert mine in waiting.take()


async def test_tenants_share_a_group_by_the_rows_that_they_write(waiting: Lines) -> None:
    learn_heavy(waiting, "a")
    add(waiting, "a", 100, heavy)
    add(waiting, "b", 1_000)
    taken = counts(commit(waiting))
    assert taken["a", "heavy"] == 1
    assert taken["b", "light"] >= 100


async def test_a_group_ends_at_so_many_rows(waiting: Lines) -> None:
    learn_heavy(waiting, "a")
    add(waiting, "a", 100, heavy)
    rows = sum(item.rows or 0 for item in commit(waiting))
    assert lines.GROUP_ROWS - HEAVY <= rows <= lines.GROUP_ROWS


async def test_a_group_takes_few_units_of_a_tenant_whose_rows_nobody_knows(
    waiting: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_heavy(waiting, "a")
    add(waiting, "b", 100, heavy)
    assert len(waiting.take()) <= lines.GROUP_ROWS // lines.UNKNOWN_ROWS
    monkeypatch.setattr("tests.store.test_lines.HEAVY", 0)
    learn_heavy(waiting, "c")
    add(waiting, "c", 100, heavy)
    assert counts(waiting.take())["c", "heavy"] == 100


async def test_a_tenant_whose_units_write_few_rows_is_known_after_its_first_ones(
    waiting: Lines,
) -> None:
    learn_heavy(waiting, "a")
    add(waiting, "b", 100, heavy)
    first = waiting.take()
    for item in first:
        item.has_run = True  # So few rows that nobody was charged for them.
    waiting.learn(first)
    assert len(waiting.take()) == 100 - len(first)


async def test_groups_are_smaller_while_they_run_for_long(waiting: Lines) -> None:
    add(waiting, "a", 3_000)
    sizes = []
    for seconds in (1.0, 1.0, lines.GROUP_SECONDS / 2, 0.0, 0.0):
        items = waiting.take()
        items[0].seconds = seconds
        sizes.append(len(items))
        waiting.learn(items)
    whole = lines.GROUP_MAX
    assert sizes == [whole, whole // 2, whole // 4, whole // 4, whole // 2]


async def test_a_group_is_never_too_small_to_share_a_sync(waiting: Lines) -> None:
    add(waiting, "a", 3_000)
    for _ in range(20):
        items = waiting.take()
        items[0].seconds = 10.0
        waiting.learn(items)
    assert len(waiting.take()) == lines.GROUP_ROWS_MIN // lines.UNIT_ROWS


async def test_who_is_heavier_than_a_group_still_has_a_turn(
    waiting: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_heavy(waiting, "a")
    monkeypatch.setattr(lines, "GROUP_ROWS", HEAVY // 2)
    add(waiting, "a", 2, heavy)
    assert [len(commit(waiting)) for _ in range(3)] == [1, 1, 0]


async def test_a_tenants_requests_do_not_wait_for_its_own_heavy_units(waiting: Lines) -> None:
    learn_heavy(waiting, "a")
    add(waiting, "a", 100, heavy)
    [request] = add(waiting, "a", 1, light)
    assert request in commit(waiting)


async def one_at_a_time(waiting: Lines, tenants: dict[str, Any], groups: int) -> list[list[Item]]:
    """Return the next groups; each tenant adds its next unit once its last one is committed."""
    for tenant, unit in tenants.items():
        add(waiting, tenant, 1, unit)
    taken: list[list[Item]] = []
    for _ in range(groups):
        taken.append(commit(waiting))
        for item in taken[-1]:
            if item.tenant in tenants:
                add(waiting, item.tenant, 1, tenants[item.tenant])
    return taken


async def test_a_light_unit_waits_for_no_round_of_heavy_ones(waiting: Lines) -> None:
    heavy_tenants = {f"heavy{n}": heavy for n in range(20)}
    for tenant in heavy_tenants:
        learn_heavy(waiting, tenant)
    groups = await one_at_a_time(waiting, heavy_tenants | {"a": light}, 60)
    assert sum(item.tenant == "a" for items in groups for item in items) == 60
    rounds = Counter(item.tenant for items in groups for item in items if item.unit is heavy)
    assert set(rounds.values()) == {3}


async def test_a_tenant_with_one_heavy_unit_at_a_time_writes_no_more_than_the_others(
    waiting: Lines,
) -> None:
    learn_heavy(waiting, "a")
    add(waiting, "b", 5_000)
    taken = counts(chain.from_iterable(await one_at_a_time(waiting, {"a": heavy}, 8)))
    assert taken["a", "heavy"] >= 3
    assert taken["a", "heavy"] * HEAVY <= taken["b", "light"] * lines.UNIT_ROWS + HEAVY


async def test_a_heavy_unit_has_its_turn_among_any_number_of_light_ones(waiting: Lines) -> None:
    learn_heavy(waiting, "a")
    [mine] = add(waiting, "a", 1, heavy)
    crowd = {f"light{n}": light for n in range(2 * lines.GROUP_MAX)}
    groups = await one_at_a_time(waiting, crowd, lines.LEAD_ROWS)
    assert any(mine in items for items in groups)


async def test_what_is_put_back_is_not_charged(waiting: Lines) -> None:
    learn_heavy(waiting, "a")
    [mine] = add(waiting, "a", 1, heavy)
    add(waiting, "z", 5_000)
    for _ in range(3):
        assert mine in waiting.take()
        waiting.put_back([mine])


async def test_looks_that_run_nothing_change_no_turn(waiting: Lines) -> None:
    """As while a unit has all of its batches in commits, on PostgreSQL."""
    add(waiting, "a", 3 * lines.GROUP_MAX)
    for _ in range(50):
        waiting.put_back(waiting.take())
    add(waiting, "b", 3 * lines.GROUP_MAX)
    taken = counts(waiting.take())
    assert taken["a", "light"] == taken["b", "light"] == lines.GROUP_MAX // 2


async def test_what_turns_out_heavy_before_it_is_put_back_gives_no_other_tenant_an_earlier_turn(
    waiting: Lines,
) -> None:
    """The light line has paid for it; the heavy line is new."""
    learn_heavy(waiting, "z")  # It is a unit that counts its rows.
    add(waiting, "b", 2 * lines.GROUP_MAX)
    add(waiting, "a", 20, heavy)
    taken = waiting.take()
    first, *others = [item for item in taken if item.unit is heavy]
    run([first])
    waiting.learn([first])
    waiting.put_back(others)
    add(waiting, "new", 2 * lines.GROUP_MAX)
    add(waiting, "a", 2 * lines.GROUP_MAX)
    places = counts(waiting.take())
    assert places["new", "light"] == pytest.approx(places["b", "light"], abs=1)
    assert places["a", "light"] > places["b", "light"] / 2, "it still pays for what has not run"


async def test_what_has_run_is_charged_though_the_rest_is_put_back(waiting: Lines) -> None:
    add(waiting, "b", 3 * lines.GROUP_MAX)
    mine = add(waiting, "a", 100)
    assert set(mine) < set(waiting.take())
    waiting.put_back(mine[50:])
    add(waiting, "a", lines.GROUP_MAX)
    taken = counts(waiting.take())
    ran = {"a": 50, "b": lines.GROUP_MAX - 100}  # Of the first group.
    assert taken["a", "light"] + ran["a"] == pytest.approx(taken["b", "light"] + ran["b"], abs=1)


async def test_the_emptied_lines_that_are_remembered_are_bounded(
    waiting: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "ENDS_MAX", 2)
    add(waiting, "z", 2 * lines.GROUP_MAX)
    for tenant in "abcd":
        add(waiting, tenant, 1)
    commit(waiting)
    assert [tenant for tenant, _ in waiting._ends] == ["c", "d"]
    while commit(waiting):
        pass
    assert not waiting._ends, "once nobody waits, nobody has to catch up"


async def test_units_that_turn_out_heavy_keep_their_order(waiting: Lines) -> None:
    items = add(waiting, "a", 30, heavy)
    taken = waiting.take()
    later = add(waiting, "a", 5, heavy)
    requests = add(waiting, "a", 1)
    run(taken[:10])
    waiting.learn(taken)
    waiting.put_back(taken[10:])
    order: list[Item] = []
    while group_items := commit(waiting):
        order += group_items
    assert [item for item in order if item.unit is heavy] == [*items[10:], *later]
    assert order.index(requests[0]) < 10


async def test_what_has_not_run_says_nothing_of_its_rows(waiting: Lines) -> None:
    learn_heavy(waiting, "a")
    add(waiting, "a", 100, heavy)
    for _ in range(15):
        taken = waiting.take()
        assert len(taken) == 1
        waiting.learn(taken)
        waiting.put_back(taken)


async def test_heavy_units_are_light_again_a_while_after_they_wrote_little(
    waiting: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_heavy(waiting, "a")
    monkeypatch.setattr("tests.store.test_lines.HEAVY", 0)
    sizes = []
    for _ in range(15):
        add(waiting, "a", 20, heavy)
        sizes.append(len(commit(waiting)))
        while commit(waiting):
            pass
    assert sizes[0] <= 8
    assert sizes[-1] == 20


async def test_the_kinds_that_are_remembered_are_bounded(
    waiting: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "WEIGHTS_MAX", 2)
    for tenant in "abac":
        learn_heavy(waiting, tenant)
    assert [tenant for tenant, _ in waiting._weights] == ["a", "c"]


async def test_what_is_dropped_is_not_taken(waiting: Lines) -> None:
    dropped, kept = add(waiting, "a", 3), add(waiting, "b", 2)
    assert waiting.drop(lambda item: item.tenant == "a") == dropped
    assert len(waiting) == 2
    assert waiting.take() == kept
    waiting.drop(lambda _item: True)
    assert not waiting


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(str(tmp_path / "test.db"), clock=lambda: 7)
    await opened.open()
    yield opened
    await opened.close()


def record_groups(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Item]]:
    """Return a list that gets the items of each group from now on."""
    groups: list[Sequence[Item]] = []
    commit_group = group.commit_group

    def commit_and_record(connection: sqlite3.Connection, items: Any, now: int) -> Any:
        groups.append(items)
        return commit_group(connection, items, now)

    monkeypatch.setattr(group, "commit_group", commit_and_record)
    return groups


async def fan_out(tx: Transaction, tenants: Sequence[str]) -> list[None]:
    """A batched unit: those of the tenant `many` are owed to many."""
    for tenant in tenants:
        tx.charge({tenant: HEAVY if tenant == "many" else 1})
    return [None] * len(tenants)


async def test_rows_count_for_the_tenant_on_whose_account_they_are_written(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(tenant: str) -> Any:
        return database.write_batched(fan_out, tenant, tenant=tenant)

    await asyncio.gather(*(write(tenant) for tenant in ("many", "few", "many", "few")))
    groups = record_groups(monkeypatch)
    await asyncio.gather(*(write("many") for _ in range(20)), *(write("few") for _ in range(100)))
    first = Counter(item.tenant for item in groups[0])
    assert first == {"few": 100, "many": 1}
    assert sum(map(len, groups)) == 120


async def test_heavy_units_whose_tenant_nobody_knows_are_heavy_too(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.gather(*(database.write_batched(fan_out, "many") for _ in range(2)))
    groups = record_groups(monkeypatch)
    requests = [database.write_batched(fan_out, "few", tenant="few") for _ in range(5)]
    await asyncio.gather(*(database.write_batched(fan_out, "many") for _ in range(20)), *requests)
    assert Counter(item.tenant for item in groups[0])[None] == 1
