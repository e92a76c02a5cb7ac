"""The order in which lanes are read: a few at once, and in turn by tenant."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from service.delivery import loading
from service.delivery.lanes import Lane
from service.delivery.loading import LOADS_MAX, Loads


def loads_of(*, lost: str = "") -> Any:
    """The loads of a process that holds the shards of all subscribers but one."""
    database = SimpleNamespace(holds=lambda id_: id_ != lost)
    context: Any = SimpleNamespace(database=database)
    return Loads(context, None)  # type: ignore[arg-type]  # It hands it on.


async def test_many_lanes_of_one_tenant_delay_no_lane_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    under_way, most, read = 0, 0, list[str]()

    async def load(_context: Any, _receivers: Any, lane: Lane) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)  # noqa: TID251  others have their turn
        under_way -= 1
        read.append(lane.tenant)

    monkeypatch.setattr(loading, "load", load)
    loads = loads_of()
    runs = []
    for number in range(501):
        lane = Lane(f"sub_{number}", tenant="other" if number == 500 else "many")
        if loads.add(lane):
            runs.append(loads.run(lambda _lane: None))
        assert not loads.add(lane)  # It waits already.
    await asyncio.gather(*runs)
    assert (len(read), most) == (501, LOADS_MAX)
    assert read.index("other") < LOADS_MAX


async def test_a_lane_whose_shard_was_lost_meanwhile_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it read, the process that has the shard would change."""
    read, went_on = list[str](), list[Lane]()

    async def load(_context: Any, _receivers: Any, lane: Lane) -> None:
        read.append(lane.subscriber_id)

    monkeypatch.setattr(loading, "load", load)
    loads, lanes = loads_of(lost="sub_1"), [Lane("sub_0"), Lane("sub_1")]
    assert [loads.add(lane) for lane in lanes] == [True, True]
    await loads.run(went_on.append)
    assert read == ["sub_0"]
    assert went_on == lanes
    assert not any(lane.is_loading for lane in lanes)
    assert [lane.is_over for lane in lanes] == [False, True]
