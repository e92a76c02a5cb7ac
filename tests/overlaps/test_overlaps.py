"""Two processes act on the same rows, one in the middle of the other's transaction.

`make chaos NAMES=overlaps` has every pair of acts, and every point.
"""

from pathlib import Path

import pytest

from tests.overlaps.acts import ACTS, SINGLE, sweep
from tests.overlaps.world import END, Act, Point, Stage

pytestmark = pytest.mark.usefixtures("postgres")
# An act that is stopped, the act of another process meanwhile, and at which statements.
PAIRS = [
    ("a callback of one that ended", "erase", 2),
    ("a callback of progress", "a callback of progress", 2),
    ("cancel", "a callback of an open one", 1),
    ("create once", "create once", 1),
    ("create with a new notify_url", "create with a new notify_url", 3),
    ("create with a notify_url", "erase one with a notify_url", 2),
    ("create once", "sweep idempotency_delete_old", 8),
    ("erase one with a notify_url", "record again", 6),
    ("erase", "replay step", 1),
    ("an attempt that is throttled", "sweep rests_delete_old", 4),
    ("rotate", "describe", 1),
]
# On rows that retention may delete.
OLD_PAIRS = [("an attempt that delivers", "sweep deliveries_old", 2)]


@pytest.mark.parametrize(
    ("first", "second", "statement", "end"),
    [*[(*pair, None) for pair in PAIRS], *[(*pair, sweep) for pair in OLD_PAIRS]],
)
async def test_it_does_not_matter_where_in_a_transaction_another_process_acts(
    tmp_path: Path, first: str, second: str, statement: int, end: Act | None
) -> None:
    async with Stage(tmp_path, "confirm", end) as stage:
        acts = ACTS[first], SINGLE[second]
        before, within, after = [
            await stage.play(*acts, Point(1, point)) for point in (0, statement, END)
        ]
        assert before is not None
        assert within in (before, after)
