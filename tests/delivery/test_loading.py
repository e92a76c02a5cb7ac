"""The order in which lanes are read: a few at once, and in turn by tenant."""

import asyncio
from typing import Any

import pytest

from service.delivery import loading
from service.delivery.lanes import Lane
from service.delivery.loading import LOADS_MAX, Loads


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
    loads: Any = Loads(None, None)  # type: ignore[arg-type]  # It hands them on.
    runs = []
    for number in range(501):
        lane = Lane(f"sub_{number}", tenant="other" if number == 500 else "many")
        if loads.add(lane):
            runs.append(loads.run(lambda _lane: None))
        assert not loads.add(lane)  # It waits already.
    await asyncio.gather(*runs)
    assert (len(read), most) == (501, LOADS_MAX)
    assert read.index("other") < LOADS_MAX
