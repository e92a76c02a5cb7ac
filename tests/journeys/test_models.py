"""The catalogue answers which models there are, and which of them is the cheapest."""

from pathlib import Path

import pytest

from service.dashboard.calls import LIMIT_MAX
from tests.harness import Harness, opened

KINDS = {"imagen-4": "image", "kling-3": "video", "suno": "audio", "bg-remover": "tool"}


@pytest.mark.sqlite_only("the catalogue is in no database")
async def test_models_are_filtered_by_kind_and_callbacks_and_the_cheapest_come_first(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        every = (await world.get("/v1/models"))["data"]
        assert {m["family"]: m["kind"] for m in every if m["family"] in KINDS} == KINDS
        query = {"kind": "image", "callbacks": "true", "sort": "credits"}
        found = (await world.get("/v1/models", **query))["data"]
        assert {(each["kind"], each["callbacks"]) for each in found} == {("image", True)}
        expected = [each for each in every if each["kind"] == "image" and each["callbacks"]]
        assert found == sorted(expected, key=lambda each: (each["credits"], each["id"]))
        others = (await world.get("/v1/models", callbacks="false"))["data"]
        assert others == [each for each in every if not each["callbacks"]]


async def pages(world: Harness, limit: int, **query: str) -> list[list[str]]:
    """The ids of each page of a list, up to that whose `next` is null."""
    ids, page = [], await world.get("/v1/models", limit=limit, **query)
    while True:
        ids.append([each["id"] for each in page["data"]])
        if page["next"] is None:
            return ids
        assert page["next"] == ids[-1][-1]
        page = await world.get("/v1/models", limit=limit, after=page["next"], **query)
        assert not page["data"] or page["data"][0]["id"] != ids[-1][-1], "it would never end"


@pytest.mark.sqlite_only("the catalogue is in no database")
@pytest.mark.parametrize("query", [{}, {"kind": "image", "callbacks": "true", "sort": "credits"}])
async def test_pages_of_models_together_are_the_whole_list(
    tmp_path: Path, query: dict[str, str]
) -> None:
    async with opened(tmp_path) as world:
        [every] = await pages(world, LIMIT_MAX, **query)  # As the pages for people ask for it.
        for limit in (1, 4, len(every) - 1, len(every)):
            ids = await pages(world, limit, **query)
            assert [id_ for page in ids for id_ in page] == every
            assert [len(page) for page in ids[:-1]] == [limit] * (len(ids) - 1)
            assert 0 < len(ids[-1]) <= limit


@pytest.mark.sqlite_only("the catalogue is in no database")
@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("after", "nobody", "must be the `next` of an earlier page"),
        ("after", "imagen-4", "must be the `next` of an earlier page"),  # A family is no model.
        ("limit", "0", "must be a whole number from 1 to 250"),
        ("limit", "251", "must be a whole number from 1 to 250"),
    ],
)
async def test_a_page_of_models_that_cannot_be_is_a_problem(
    tmp_path: Path, name: str, value: str, rule: str
) -> None:
    async with opened(tmp_path) as world:
        answer = await world.client.get("/v1/models", params={name: value})
        assert answer.status_code == 400
        problem = answer.json()
        assert problem["code"] == "invalid_query"
        assert problem["errors"] == [{"pointer": f"?{name}", "message": rule}]
